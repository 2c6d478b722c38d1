"""Hand over to vLLM's own server, for machines with a GPU.

A test holds the options against those that vLLM's code declares (tools/vllm_flags.py records them).
Written and not run: no GPU was at hand.
"""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from luthier.errors import UserError
from luthier.models.load import load_config, load_tokenizer
from luthier.models.source import resolve
from luthier.recipe import Recipe
from luthier.run import Run, open_run
from luthier.serve.models import base_key, base_name_of, parse_run

_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that `--max-lora-rank` takes


def command(runs: Sequence[str], host: str, port: int, context: int | None) -> list[str]:
    """The command line that serves ``runs``.

    Raises:
        UserError: vLLM cannot serve these runs, or not together.
    """
    named = [(name, open_run(path)) for name, path in map(parse_run, runs)]
    recipes = [run.recipe() for _, run in named]
    for _, run in named:
        run.require_finished()
    first = recipes[0]
    shared = ["--host", host, "--port", str(port)]
    shared += ["--dtype", named[0][1].provenance().dtype]
    if context is not None:
        shared += ["--max-model-len", str(context)]
    if first.model.trust_remote_code:
        shared.append("--trust-remote-code")
    if any(recipe.method.name == "full" for recipe in recipes):
        if len(named) > 1:
            raise UserError(
                "vLLM serves either one full fine-tune or adapters over one base; start one server for each"
            )
        name, run = named[0]
        return [
            "vllm",
            "serve",
            str(run.model_path.resolve()),
            "--served-model-name",
            name,
            *shared,
        ]
    if len({base_key(run) for _, run in named}) > 1:
        raise UserError(
            "vLLM serves adapters over one base, but these runs have different bases; start one server for each"
        )
    if any(recipe.method.use_dora for recipe in recipes):
        raise UserError("vLLM cannot run DoRA adapters; merge the run first, or use our own engine")
    if any(recipe.method.name == "qlora" for recipe in recipes):
        raise UserError(
            "vLLM does not run the 4-bit weights of bitsandbytes, over which this adapter was trained; "
            "merge the run first, or use our own engine"
        )
    templates = {load_tokenizer(run.adapter_path).chat_template for _, run in named}
    if len(templates) > 1:
        raise UserError(
            "vLLM takes one chat template, but these runs have different ones; start one server for each"
        )
    rank = next((r for r in _RANKS if r >= max(_rank(run) for _, run in named)), None)
    if rank is None:
        raise UserError(f"vLLM runs adapters up to rank {_RANKS[-1]}; merge the run first")
    made = ["vllm", "serve", str(resolve(first.model.source, first.model.revision).folder)]
    made += ["--served-model-name", base_name_of(first)]
    # The tokenizer of the run has the template that it trained with.
    made += ["--tokenizer", str(named[0][1].adapter_path.resolve())]
    if first.model.rope_scaling is not None:
        made += ["--hf-overrides", _scaled(made[2], first)]
    made += ["--enable-lora", "--max-lora-rank", str(rank), "--max-loras", str(len(named))]
    # As JSON, since it takes name=path only where there is no comma in it.
    adapters = [{"name": name, "path": str(run.adapter_path.resolve())} for name, run in named]
    made += ["--lora-modules", *map(json.dumps, adapters)]
    return [*made, *shared]


def hand_over(line: Sequence[str], api_key: str | None) -> None:
    """Become vLLM's server; comes back only by an error.

    Raises:
        UserError: vLLM is not installed.
    """
    program = shutil.which(line[0])
    if program is None:
        raise UserError("vLLM is not installed here (it needs a GPU): pip install vllm")
    if api_key is not None:
        os.environ["VLLM_API_KEY"] = api_key  # not in the command line, which others can read
    os.execv(program, list(line))  # noqa: S606


def _scaled(folder: str, recipe: Recipe) -> str:
    """What of the base's config the recipe changes, as JSON."""
    config = load_config(
        Path(folder), recipe.model.trust_remote_code, recipe.model.rope_scaling
    ).get_text_config()
    names = ("rope_parameters", "max_position_embeddings")
    return json.dumps({name: getattr(config, name) for name in names})


def _rank(run: Run) -> int:
    """The highest rank of the adapter as it is saved (twice the recipe's after PiSSA)."""
    config = json.loads((run.adapter_path / "adapter_config.json").read_text("utf-8"))
    return max([config["r"], *(config.get("rank_pattern") or {}).values()])
