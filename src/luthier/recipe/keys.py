"""Every key of a recipe, ready to be shown: type, default, allowed values, description, example."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from luthier.errors import UserError
from luthier.recipe.groups.method import METHOD_DEFAULTS
from luthier.recipe.messages import nearest_key
from luthier.recipe.schema import Recipe, groups, known_keys

_TYPES = {
    "string": "string",
    "integer": "integer",
    "number": "number",
    "boolean": "true or false",
    "null": "null",
    "object": "mapping",
}
_BOUNDS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "above {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "below {}",
}


@dataclass(frozen=True)
class Key:
    """One key.

    Attributes:
        default: the usual value; None for "not set", and where ``by_method`` has it.
        by_method: the default of each method, where they differ.
        allowed: the values it takes, empty where its type says all.
        example: a value as ``--set`` takes it.
    """

    group: str
    name: str
    type: str
    required: bool
    default: Any
    by_method: dict[str, Any] | None
    allowed: str
    description: str
    example: str

    @property
    def path(self) -> str:
        return f"{self.group}.{self.name}"

    @property
    def usual(self) -> str:
        """The default in words."""
        if self.required:
            return "required"
        if self.by_method is None:
            return "not set" if self.default is None else yaml_value(self.default)
        return ", ".join(f"{method} {value}" for method, value in self.by_method.items())


def all_keys() -> Iterator[Key]:
    """Every key, in the order of the recipe."""
    schema = Recipe.model_json_schema()
    for group in groups():
        entry = _resolved(schema["properties"][group], schema)
        for name, field in entry["properties"].items():
            yield _key(group, name, field, name in entry.get("required", ()), schema)


def find_key(path: str) -> Key:
    """The key ``group.key``.

    Raises:
        UserError: there is none; the message names the nearest.
    """
    for key in all_keys():
        if key.path == path:
            return key
    raise UserError(f"unknown key '{path}'{nearest_key(path, list(known_keys()), list(groups()))}")


def group_purpose(group: str) -> str:
    """What the keys of ``group`` are about, one sentence."""
    schema = Recipe.model_json_schema()
    purpose: str = _resolved(schema["properties"][group], schema)["description"]
    return purpose


def yaml_value(value: Any) -> str:
    """``value`` as YAML on one line, as a recipe or ``--set`` takes it."""
    text = yaml.safe_dump(
        value, default_flow_style=True, width=math.inf, allow_unicode=True, sort_keys=False
    )
    return text.removesuffix("...\n").strip()


def _key(group: str, name: str, field: dict[str, Any], required: bool, whole: Any) -> Key:
    default = field.get("default")
    by_method = None
    if name in METHOD_DEFAULTS["full"] and group == "train":
        by_method = {method: values[name] for method, values in METHOD_DEFAULTS.items()}
    kinds = [_resolved(kind, whole) for kind in field.get("anyOf", [field])]
    allowed = [text for kind in kinds if (text := _allowed(kind))]
    if "examples" in field:
        example = field["examples"][0]
    elif field.get("type") == "boolean":
        example = not default
    else:
        example = next(value for value in kinds[0]["enum"] if value != default)
    return Key(
        group=group,
        name=name,
        type=" or ".join(dict.fromkeys(map(_type, kinds))),
        required=required,
        default=default,
        by_method=by_method,
        allowed="; ".join(allowed),
        description=field["description"],
        example=yaml_value(example),
    )


def _type(kind: dict[str, Any]) -> str:
    if kind["type"] == "array":
        return f"list of {_type(kind['items'])}s"
    return _TYPES[kind["type"]]


def _allowed(kind: dict[str, Any]) -> str:
    """The values of one type: a choice, bounds, or the keys of a mapping."""
    if "items" in kind:
        return _allowed(kind["items"])
    if "properties" in kind:
        parts = (f"{name} ({field['description']})" for name, field in kind["properties"].items())
        return f"keys {', '.join(parts)}"
    if "propertyNames" in kind:
        return f"keys {_allowed(kind['propertyNames'])}"
    choice = kind.get("enum") or ([kind["const"]] if "const" in kind else None)
    if choice:
        return ", ".join(choice)
    return " and ".join(form.format(kind[key]) for key, form in _BOUNDS.items() if key in kind)


def _resolved(entry: dict[str, Any], whole: dict[str, Any]) -> dict[str, Any]:
    if "$ref" not in entry:
        return entry
    found: dict[str, Any] = whole["$defs"][entry["$ref"].rpartition("/")[2]]
    return found
