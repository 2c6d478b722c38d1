"""One recipe, many variants: the grid over methods, keys and seeds."""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import yaml

from luthier.errors import UserError
from luthier.recipe import METHOD_DEFAULTS, MethodName, Recipe
from luthier.recipe.groups.objective import PREFERENCE_RATES


@dataclass(frozen=True)
class Variant:
    """One recipe of the grid.

    Attributes:
        name: what differs, without the seed: variants that share it are repetitions.
        changes: the varied keys and their values.
    """

    name: str
    seed: int
    changes: dict[str, Any]
    recipe: Recipe


def make_variants(
    base: Recipe,
    methods: Sequence[str],
    vary: Mapping[str, Sequence[Any]],
    seeds: int,
    runs: Path,
) -> list[Variant]:
    """Every combination of the methods, the values of each varied key, and ``seeds`` seeds.

    A method gets its own usual learning rate, weight decay and optimiser; where the recipe's rate
    is a multiple of its own method's usual one, each method's is the same multiple of its own. A
    rate that is varied is taken as it stands.

    Args:
        runs: folder for the run folders.

    Raises:
        UserError: there is no such method or key, or there is nothing to compare.
    """
    known = get_args(MethodName)
    for method in methods:
        if method not in known:
            raise UserError(f"there is no method '{method}'; methods are {', '.join(known)}")
    grid: dict[str, Sequence[Any]] = {}
    if methods:
        grid["method.name"] = list(dict.fromkeys(methods))
    grid |= vary
    count = 1
    for values in grid.values():
        count *= len(values)
    if count * seeds < 2:
        raise UserError(
            "there is only one variant; add more with --methods full,lora,qlora, "
            "--vary method.lora_r=4,16,64 or --seeds 3"
        )
    if seeds > 1 and base.data.validation is None:
        raise UserError(
            "--seeds draws a different validation split for each seed, and results on different rows "
            "cannot be compared: set data.validation to a file"
        )
    variants = []
    for combination in itertools.product(*grid.values()):
        changes = dict(zip(grid, combination, strict=True))
        name = _name(changes) or base.method.name
        for number in range(seeds):
            seed = base.train.seed + number
            folder = f"{_slug(name)}-seed{seed}" if seeds > 1 else _slug(name)
            sets = {
                **_own_defaults(base, changes),
                **changes,
                "train.seed": seed,
                "run.dir": str(runs),
                "run.name": folder,
            }
            recipe = base.changed(**_by_group(sets)).with_absolute_paths()
            variants.append(Variant(name, seed, changes, recipe))
    if len({v.recipe.run.name for v in variants}) < len(variants):
        raise UserError("two variants are the same; give each value of --methods and --vary once")
    return variants


def parse_vary(texts: Sequence[str]) -> dict[str, list[Any]]:
    """``group.key=VALUE,VALUE`` options as lists of YAML values.

    Raises:
        UserError: one has another form.
    """
    parsed: dict[str, list[Any]] = {}
    for text in texts:
        key, equals, values = text.partition("=")
        try:
            # YAML 1.1 reads 1e-4 as text; Pydantic turns it into the number it is.
            items = yaml.safe_load(f"[{values}]")
        except yaml.YAMLError:
            items = None
        if not equals or not items or key.count(".") != 1:
            raise UserError(
                f"--vary takes group.key=VALUE,VALUE (method.lora_r=4,16,64), not '{text}'"
            )
        if key == "method.name":
            raise UserError("vary the method with --methods full,lora,qlora, not with --vary")
        if key == "train.seed":
            raise UserError("repeat runs over seeds with --seeds 3, not with --vary")
        parsed[key.strip()] = items
    return parsed


def _own_defaults(base: Recipe, changes: dict[str, Any]) -> dict[str, Any]:
    method, own = changes.get("method.name", base.method.name), base.method.name
    if method == own:
        return {}
    usual, mine = METHOD_DEFAULTS[method], METHOD_DEFAULTS[own]
    rates = {name: keys["learning_rate"] for name, keys in METHOD_DEFAULTS.items()}
    rates |= PREFERENCE_RATES.get(base.objective.name, {})
    assert base.train.learning_rate is not None
    rate = rates[method] * base.train.learning_rate / rates[own]
    sets: dict[str, Any] = {"train.learning_rate": float(f"{rate:.3g}")}
    for key in ("weight_decay", "optim"):
        if getattr(base.train, key) == mine[key]:
            sets[f"train.{key}"] = usual[key]
    return sets


def _by_group(sets: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    groups: dict[str, dict[str, Any]] = {}
    for key, value in sets.items():
        group, _, name = key.partition(".")
        groups.setdefault(group, {})[name] = value
    return groups


def _name(changes: dict[str, Any]) -> str:
    parts = []
    for key, value in changes.items():
        shown = "+".join(map(str, value)) if isinstance(value, list) else str(value)
        parts.append(shown if key == "method.name" else f"{key.rpartition('.')[2]}={shown}")
    return " ".join(parts)


def _slug(name: str) -> str:
    return re.sub(r"[^\w.+-]+", "-", name)
