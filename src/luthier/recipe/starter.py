"""A recipe to begin with: each line says what it does."""

import shlex
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

from luthier.recipe.json_schema import schema_comment
from luthier.recipe.keys import all_keys, group_purpose, yaml_value
from luthier.recipe.schema import Recipe, given, groups

# What most people change sooner or later; other keys are written where the recipe sets them.
_USUAL = {
    "model": ("source", "dtype"),
    "method": ("name",),
    "data": ("train", "max_length", "train_on"),
    "train": (
        *("num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps"),
        *("learning_rate", "gradient_checkpointing", "early_stopping_patience", "seed"),
    ),
    "evaluate": ("metrics", "max_rows"),
    "run": ("dir",),
}
_ADAPTER = ("lora_r", "lora_alpha", "lora_dropout", "target_modules")
_PATIENCE = 3  # evaluations, as in the recipes of the repository
_WIDTH = 100


def starter_recipe(recipe: Recipe, file: Path) -> str:
    """YAML of what ``recipe`` sets and of the usual keys, each with a comment.

    Args:
        file: where it will be, for the commands at its top.
    """
    if recipe.has_validation and "early_stopping_patience" not in recipe.train.model_fields_set:
        recipe = recipe.changed(train={"early_stopping_patience": _PATIENCE})
    return commented(
        recipe,
        [
            "Made by `luthier recipe new`. What is not written here has its default: `luthier recipe "
            "explain` lists every key. The next commands:",
        ],
        next_commands(recipe, file),
    )


def commented(recipe: Recipe, said: Sequence[str], commands: Sequence[str]) -> str:
    """YAML of what ``recipe`` sets and of the usual keys, each with a comment.

    Args:
        said: paragraphs and items ("- …") at its top, of which the last leads to ``commands``.
    """
    lines = [schema_comment()]
    for paragraph in said:
        lines += [*([] if paragraph.startswith("- ") else ["#"]), *_comment(paragraph, "")]
    lines += ["#", *(f"#   {command}" for command in commands)]
    for group in groups():
        keys = list(_lines(recipe, group))
        if keys:
            lines += ["", *_comment(group_purpose(group), ""), f"{group}:", *keys]
    return "\n".join(lines) + "\n"


def next_commands(recipe: Recipe, file: Path) -> list[str]:
    """What to type once the recipe is written to ``file``."""
    return [
        shlex.join(["luthier", *words])
        for words in (
            ["data", "check", *recipe.train_files],
            ["plan", str(file)],
            ["train", str(file)],
        )
    ]


def _lines(recipe: Recipe, group: str) -> Iterator[str]:
    shown = {*_USUAL.get(group, ()), *given(recipe)[group]}
    if group == "method" and recipe.method.name != "full":
        shown |= set(_ADAPTER)
    if group == "data" and recipe.data.validation is None:
        shown.add("validation_fraction")
    for key in all_keys():
        if key.group != group or key.name not in shown:
            continue
        value = getattr(getattr(recipe, group), key.name)
        if hasattr(value, "model_dump"):
            value = value.model_dump()
        line = f"  {key.name}: {yaml_value(value)}"
        if len(beside := f"{line} # {key.description}") <= _WIDTH:
            yield beside
        else:
            yield from _comment(key.description, "  ")
            yield line


def _comment(text: str, indent: str) -> list[str]:
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=f"{indent}# ",
        subsequent_indent=f"{indent}# ",
        break_on_hyphens=False,
    )
