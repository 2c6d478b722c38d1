"""Recipes from files, from ``--set`` options and from what a program gives."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from luthier.errors import UserError
from luthier.files import user_path
from luthier.recipe.changes import Changes, merge
from luthier.recipe.elsewhere import tool_of
from luthier.recipe.messages import nearest_key
from luthier.recipe.schema import Recipe, groups, known_keys
from luthier.yaml_text import parse_yaml


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file and apply ``group.key=value`` overrides.

    Raises:
        UserError: the file is missing, is not YAML, or a key or value is wrong; the message names
            each one and, for an unknown key, the nearest known one.
    """
    return parse_recipe(_text_of(path), overrides, origin=str(path))


def parse_recipe(text: str, overrides: Sequence[str] = (), origin: str = "recipe") -> Recipe:
    """Like ``load_recipe``, from YAML text; ``origin`` names it in messages."""
    return _checked(merge(_tree(text, origin), parse_overrides(overrides), origin), origin)


def stored_recipe(path: Path) -> Recipe:
    """The recipe of a run folder, whether or not the plugins that it names are installed here.

    Raises:
        UserError: as ``load_recipe``.
    """
    return Recipe.from_tree(_tree(_text_of(path), str(path)), str(path))


def parse_overrides(overrides: Sequence[str]) -> dict[str, dict[str, Any]]:
    """``group.key=value`` options as changes by group; each value is read as YAML.

    Raises:
        UserError: one has another form, or its value is not YAML.
    """
    changes: dict[str, dict[str, Any]] = {}
    for override in overrides:
        key, equals, value = override.partition("=")
        path = key.strip().split(".")
        if not equals or len(path) != 2 or not all(path):
            known = nearest_key(key.strip(), list(known_keys()), list(groups())) if equals else ""
            raise UserError(
                f"--set takes group.key=value (train.learning_rate=1e-4), not '{override}'{known}"
            )
        changes.setdefault(path[0], {})[path[1]] = parse_yaml(value, f"--set {key}")
    return changes


def as_recipe(
    recipe: Recipe | Path | str | Mapping[str, Any], /, **changes: Mapping[str, Any]
) -> Recipe:
    """The recipe that a program means, with ``changes`` of its groups.

    ``as_recipe("lora.yaml", train={"max_steps": 3}, run={"name": "short"})``

    Args:
        recipe: a recipe, the path of a recipe file, or a mapping of groups. A file or mapping need
            not be complete: it is checked together with the changes.
        changes: keys and values by group.

    Raises:
        UserError: as ``load_recipe``.
    """
    if isinstance(recipe, Recipe):
        return recipe.changed(**changes) if changes else recipe
    if isinstance(recipe, Mapping):
        return _checked(merge(recipe, changes, "recipe"), "recipe")
    path = user_path(str(recipe))
    return _checked(merge(_tree(_text_of(path), str(path)), changes, str(path)), str(path))


def model_recipe(source: str, /, **changes: Mapping[str, Any]) -> Recipe:
    """A recipe for a model as it is, with no training data: to plan by shape, or to ask it.

    Raises:
        UserError: a changed key or value is wrong.
    """
    bare: Changes = {"model": {"source": source}, "data": {"train": []}}
    return Recipe.from_tree(merge(bare, changes, "recipe"), "recipe")


def _checked(tree: Mapping[Any, Any], origin: str) -> Recipe:
    recipe = Recipe.from_tree(tree, origin)
    recipe.check_names(origin)
    return recipe


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"no recipe at {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the recipe {path}: {error}") from error


def _tree(text: str, origin: str) -> dict[Any, Any]:
    tree = parse_yaml(text, origin)
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UserError(f"{origin}: a recipe is a mapping of groups: {', '.join(groups())}")
    other = None if any(group in tree for group in groups()) else tool_of(tree)
    if other is not None:
        raise UserError(
            f"{origin} is a configuration of {other}, not a recipe; `luthier recipe convert {origin}` "
            "makes a recipe of it"
        )
    tree.pop("provenance", None)  # what runs of version 0.1 kept there: see Run.provenance
    return tree
