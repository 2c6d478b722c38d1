"""The text of a converted recipe: its keys with comments, and what has no counterpart at its top."""

from pathlib import Path

from luthier.recipe.convert.convert import TOOLS, Converted
from luthier.recipe.keys import yaml_value
from luthier.recipe.starter import commented, next_commands


def converted_recipe(done: Converted, source: Path, file: Path) -> str:
    """YAML in which each line has a comment.

    Args:
        source: what it was made of.
        file: where it will be.
    """
    said = [
        f"Made by `luthier recipe convert {source}`, of {TOOLS[done.tool]}. What is not written here "
        "has its default: `luthier recipe explain` lists every key.",
    ]
    if lost := done.of("no counterpart"):
        said.append("What has no counterpart, and why:")
        said += [f"- {e.name}: {yaml_value(e.value)} – {e.note}" for e in lost]
    said.append("The next commands:")
    return commented(done.recipe, said, [*done.commands, *next_commands(done.recipe, file)])
