"""Simulated steps, kept between commands: `luthier plan` and `train` ask for the same ones.

A step lies in ``steps`` in the cache, in a folder named after the code that simulates, under a hash of
the model's configuration, the method and the batch. Change any of it, and it is simulated anew.
"""

import hashlib
import json
import logging
import shutil
import time
from dataclasses import asdict
from functools import cache
from importlib.metadata import version
from pathlib import Path

from transformers import PreTrainedConfig

from luthier.files import code_hash, write_json
from luthier.models.pull import cache_folder
from luthier.plan.depth import step_by_layers
from luthier.plan.simulate import Step, Workload
from luthier.recipe import MethodGroup

log = logging.getLogger(__name__)

_KEPT = 90 * 24 * 3600.0  # seconds after which the steps of other code are deleted


def step_of(config: PreTrainedConfig, method: MethodGroup, work: Workload) -> Step:
    """What ``step_by_layers`` says of them. Raises as it does."""
    asked = {
        "config": {k: v for k, v in config.to_dict().items() if k != "_name_or_path"},
        "attention": config._attn_implementation,
        "method": method.model_dump(),
        "work": asdict(work)
        | {"kernels": work.kernels.model_dump(), "objective": work.objective.model_dump()},
    }
    key = hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode()).hexdigest()
    file = cache_folder().parent / "steps" / _code() / f"{key[:32]}.json"
    try:
        return Step(**json.loads(file.read_bytes()))
    except (OSError, ValueError, TypeError):  # not there, or not whole
        step = step_by_layers(config, method, work)
    try:
        if not file.parent.exists():
            file.parent.mkdir(parents=True)
            _forget(file.parent.parent)
        write_json(file, asdict(step))
    except OSError as error:
        log.info("the simulated step is not kept: %s", error)
    return step


@cache
def _code() -> str:
    """A name for the code that simulates: all of ours, and the libraries."""
    content = hashlib.sha256(code_hash().encode())
    for name in ("torch", "transformers", "peft", "bitsandbytes"):
        content.update(version(name).encode())
    return content.hexdigest()[:16]


def _forget(steps: Path) -> None:
    """Delete what code that is long gone has left."""
    for folder in steps.iterdir():
        if time.time() - folder.stat().st_mtime > _KEPT:
            shutil.rmtree(folder, ignore_errors=True)
