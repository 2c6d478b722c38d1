"""Whether a recipe gives the same bytes twice on this machine."""

import json
import tempfile
from itertools import zip_longest
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from luthier.errors import UserError
from luthier.files import sha256
from luthier.recipe import Recipe, parse_recipe
from luthier.run import Run

STEPS = 10

# What a step leaves, without what a clock or a memory gauge says.
_TIMELESS = ("step", "loss", "eval_loss", "grad_norm", "learning_rate", "tokens", "skipped")
_STATE = ("optimizer.pt", "scheduler.pt", "rng_state.pth")


def verify_determinism(recipe: Recipe) -> list[str]:
    """Train the first ``STEPS`` steps twice, each time in a process of its own, and compare.

    Weights, optimiser, random state and every logged number are compared, to the byte.

    Returns:
        What differs, in words; nothing where the runs are equal.

    Raises:
        UserError: the recipe cannot be trained at all.
    """
    with tempfile.TemporaryDirectory(prefix="luthier-") as scratch:
        runs = [_train(recipe, Path(scratch), name) for name in ("first", "second")]
        return differences(*runs)


def differences(one: Run, other: Run) -> list[str]:
    """What differs between two finished runs of the same recipe, in words."""
    found = []
    before, after = (run.recipe().provenance or {} for run in (one, other))
    for key in ("dtype", "device", "data_sha256", "template_sha256"):
        if before.get(key) != after.get(key):
            found.append(f"{key}: {before.get(key)} and {after.get(key)}")
    for left, right in zip_longest(_lines(one), _lines(other)):
        if left != right:
            keys = [k for k in _TIMELESS if (left or {}).get(k) != (right or {}).get(k)]
            step = (left or right or {}).get("step")
            found.append(
                f"step {step}: "
                + ", ".join(f"{k} {(left or {}).get(k)} and {(right or {}).get(k)}" for k in keys)
            )
            break  # all steps after it differ too
    step = max(one.checkpoints())
    if step not in other.checkpoints():
        return [*found, f"the second run has no checkpoint of step {step}"]
    folders = [run.checkpoint_path(step) for run in (one, other)]
    names = sorted(p.name for p in folders[0].iterdir() if p.suffix == ".safetensors")
    for name in (*names, *_STATE):
        files = [folder / name for folder in folders]
        if any(file.is_file() for file in files):
            digests = {sha256(file) if file.is_file() else "absent" for file in files}
            if len(digests) > 1:
                found.append(f"{name} after {step} steps")
    return found


def _lines(run: Run) -> list[dict[str, Any]]:
    lines = [json.loads(text) for text in run.metrics_path.read_text("utf-8").splitlines()]
    return [{key: line[key] for key in _TIMELESS if key in line} for line in lines]


def _train(recipe: Recipe, scratch: Path, name: str) -> Run:
    short = recipe.with_absolute_paths()
    steps = recipe.train.max_steps
    short.train.max_steps = STEPS if steps < 0 else min(steps, STEPS)
    short.train.report_to = []
    short.run.dir, short.run.name = str(scratch), name
    run = Run(scratch / name)
    context = get_context("spawn")  # nothing of this process may reach into it
    errors = context.SimpleQueue()
    process = context.Process(target=_train_apart, args=(short.to_yaml(), run.root, errors))
    process.start()
    process.join()
    if not errors.empty():
        raise UserError(errors.get())
    if process.exitcode != 0:
        raise UserError(f"the {name} of two short runs ended with {process.exitcode}")
    return run


def _train_apart(text: str, root: Path, errors: Any) -> None:
    from luthier.train.fit import fit

    try:
        fit(parse_recipe(text), Run(root), _Silent())
    except UserError as error:
        errors.put(str(error))


class _Silent:
    """A display that shows nothing."""

    def begin(self, step: int, total: int) -> None: ...
    def logged(self, line: dict[str, Any]) -> None: ...
    def note(self, text: str) -> None: ...
    def end(self) -> None: ...
