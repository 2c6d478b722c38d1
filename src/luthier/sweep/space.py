"""What a sweep varies: keys of the recipe, the values they may take, and the recipe of a trial."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from luthier.errors import UserError
from luthier.files import user_path
from luthier.recipe import Recipe
from luthier.recipe.keys import find_key, yaml_value
from luthier.records.sweep import Choice, Dimension, Span
from luthier.yaml_text import parse_yaml

# Not a key of recipes: lora_alpha follows lora_r by it, since it is their ratio that scales the update.
ALPHA_RATIO = "method.alpha_ratio"

# Training keys that decide how a run is measured or told, not what it learns.
_HOW = {"eval_steps", "eval_rows", "save_steps", "save_total_limit", "logging_steps", "report_to"}
_SPAN = re.compile(r"(?P<low>[^,\s]+?)\.\.(?P<high>[^,\s]+?)(?P<log>:log)?")


def parse_space(texts: Sequence[str], recipe: Recipe) -> list[Dimension]:
    """The dimensions that ``--space`` options name, held against ``recipe``.

    Args:
        texts: ``group.key=LOW..HIGH``, ``group.key=LOW..HIGH:log``, ``group.key=A,B,C``, or the path
            of a YAML file that maps keys to the same, lists for the last.

    Raises:
        UserError: a key or value is wrong; an unknown key comes with the nearest known one.
    """
    specs: list[tuple[str, Any, str]] = []
    for text in texts:
        key, equals, spec = text.partition("=")
        if equals:
            specs.append((key.strip(), spec.strip(), f"--space {key.strip()}"))
        else:
            specs += [(key, spec, f"{text}: {key}") for key, spec in _of_file(text).items()]
    return make_space(specs, recipe)


def make_space(specs: Sequence[tuple[str, Any, str]], recipe: Recipe) -> list[Dimension]:
    """Dimensions of (key, values, where they were given).

    Raises:
        UserError: as ``parse_space``.
    """
    keys = [key for key, _, _ in specs]
    for key, _, origin in specs:
        if keys.count(key) > 1:
            raise UserError(f"{origin}: the key is given twice")
    if ALPHA_RATIO in keys and "method.lora_alpha" in keys:
        raise UserError(
            f"{ALPHA_RATIO} is lora_alpha / lora_r: vary it or method.lora_alpha, not both"
        )
    return [_dimension(key, spec, origin, recipe) for key, spec, origin in specs]


def _of_file(text: str) -> dict[str, Any]:
    try:
        found = parse_yaml(user_path(text).read_text("utf-8"), text)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"--space takes a YAML file, or KEY=LOW..HIGH, KEY=LOW..HIGH:log or KEY=A,B,C "
            f"(train.learning_rate=1e-5..1e-3:log); '{text}' is none of them: {error}"
        ) from None
    if not isinstance(found, dict) or not found:
        raise UserError(
            f"{text}: a space is a mapping of keys, such as 'method.lora_r: [4, 16, 64]' or "
            "'train.learning_rate: 1e-5..1e-3:log'"
        )
    return {str(key): spec for key, spec in found.items()}


def _dimension(key: str, spec: Any, origin: str, recipe: Recipe) -> Dimension:
    whole = _check_key(key, origin)
    found = _SPAN.fullmatch(spec) if isinstance(spec, str) else None
    dimension = (
        _span(key, found, whole, origin) if found is not None else _choice(key, spec, origin)
    )
    ends = dimension.choices if isinstance(dimension, Choice) else [dimension.low, dimension.high]
    for value in ends:
        try:
            with_values(recipe, {key: round(value) if whole and found else value})
        except UserError as error:
            raise UserError(f"{origin}: {yaml_value(value)} cannot be tried: {error}") from None
    return dimension


def _check_key(key: str, origin: str) -> bool:
    """Whether the key takes whole numbers alone.

    Raises:
        UserError: there is no such key, or trials that differ in it cannot be compared.
    """
    if key == ALPHA_RATIO:
        return False
    try:
        kind = find_key(key).type
    except UserError as error:
        raise UserError(f"{origin}: {error}") from None
    group, _, name = key.partition(".")
    why = None
    if key == "method.name":
        why = "each method has a space of its own: luthier compare --methods tries several"
    elif key == "train.seed":
        why = "the best of several seeds is luck that the next run does not have"
    elif group == "train" and name in _HOW:
        why = "it decides how a run is measured, not what it learns"
    elif group not in ("method", "train") and key != "data.packing":
        why = (
            "trials are compared by the loss of the same rows and model; a sweep varies method.…, "
            "train.… and data.packing, and luthier compare --vary tries the others"
        )
    if why is not None:
        raise UserError(f"{origin}: {key} cannot be varied: {why}")
    return "integer" in kind and "number" not in kind


def _span(key: str, found: re.Match[str], whole: bool, origin: str) -> Span:
    try:
        low, high = float(found["low"]), float(found["high"])
    except ValueError:
        raise UserError(
            f"{origin}: {found.group()} is no range of numbers, such as 1e-5..1e-3"
        ) from None
    log = found["log"] is not None
    if not low < high < float("inf"):
        raise UserError(f"{origin}: the range {found.group()} must rise from its low to its high")
    if log and low <= 0:
        raise UserError(f"{origin}: a range by logarithms must begin above 0, not at {low:g}")
    if whole and (low != int(low) or high != int(high)):
        raise UserError(f"{origin}: {key} takes whole numbers, and {found.group()} has others")
    return Span(key=key, low=low, high=high, log=log, whole=whole)


def _choice(key: str, spec: Any, origin: str) -> Choice:
    choices = parse_yaml(f"[{spec}]", origin) if isinstance(spec, str) else spec
    if not isinstance(choices, list) or len(choices) < 2:
        raise UserError(
            f"{origin}: give two values at least, or a range: {key}=A,B or {key}=LOW..HIGH"
        )
    # YAML 1.1 reads 1e-4 as text.
    found = Choice(key=key, choices=[_number(choice) for choice in choices])
    if any(place_of(found, one) != place for place, one in enumerate(found.choices)):
        raise UserError(f"{origin}: give each value once")
    return found


def _number(value: Any) -> Any:
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def own_value(recipe: Recipe, key: str) -> Any:
    """What ``recipe`` has for a key of a space."""
    if key == ALPHA_RATIO:
        ratio = recipe.method.lora_alpha / recipe.method.lora_r
        return int(ratio) if ratio == int(ratio) else ratio
    group, _, name = key.partition(".")
    return getattr(getattr(recipe, group), name)


def place_of(choice: Choice, value: Any) -> int | None:
    """Which of the choices ``value`` is; None where it is none of them."""
    for place, one in enumerate(choice.choices):
        if one == value and isinstance(one, bool) == isinstance(value, bool):  # 3 is 3.0, not True
            return place
    return None


def holds(dimension: Dimension, value: Any) -> bool:
    """Whether ``value`` is one that the dimension may take."""
    if isinstance(dimension, Choice):
        return place_of(dimension, value) is not None
    return isinstance(value, int | float) and dimension.low <= value <= dimension.high


def with_values(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    """``recipe`` with values of a space.

    Raises:
        UserError: they do not go together.
    """
    changes: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        if key == ALPHA_RATIO:
            rank = values.get("method.lora_r", recipe.method.lora_r)
            key, value = "method.lora_alpha", max(1, round(value * rank))
        group, _, name = key.partition(".")
        changes.setdefault(group, {})[name] = value
    return recipe.changed(**changes)


def shown(dimension: Dimension) -> str:
    """The values of a dimension, as ``--space`` takes them."""
    if isinstance(dimension, Choice):
        return ", ".join(map(yaml_value, dimension.choices))
    return f"{dimension.low:g}..{dimension.high:g}{':log' if dimension.log else ''}"
