"""What a run depends on besides its settings, kept in its recipe.yaml."""

import platform
from importlib.metadata import version
from typing import Any

from transformers import PreTrainedTokenizerBase

from luthier import __version__
from luthier.data.prepare import Prepared
from luthier.errors import UserError
from luthier.models.load import template_hash
from luthier.models.source import ResolvedModel
from luthier.recipe import Recipe
from luthier.train.setup import Setup


def resolved_recipe(
    recipe: Recipe,
    resolved: ResolvedModel,
    setup: Setup,
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    data: Prepared,
) -> Recipe:
    """The recipe with paths made absolute and a record of all that the run depends on."""
    full = recipe.with_absolute_paths()
    full.provenance = {
        "versions": _versions(),
        "device": setup.device_name,
        "dtype": setup.dtype_name,
        "substitutes": setup.substitutes,
        "model": resolved.origin,
        "template": template,
        "template_sha256": template_hash(tokenizer),
        "data_sha256": {source["file"]: source["sha256"] for source in data.report["sources"]},
    }
    return full


def _versions() -> dict[str, str]:
    packages = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "tokenizers")
    return {
        "luthier": __version__,
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
    }


def changed_versions(provenance: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Which packages differ from when the run was begun, as ``name old -> new``.

    Raises:
        UserError: the chat template differs, which would change what is learned.
    """
    if provenance["template_sha256"] != template_hash(tokenizer):
        raise UserError(
            "the model's chat template is not the one this run was begun with; "
            "choose another run.name to start anew"
        )
    now, then = _versions(), provenance["versions"]
    return [
        f"{name} {then.get(name)} -> {now[name]}" for name in now if now[name] != then.get(name)
    ]
