"""What the groups share."""

from typing import Any

from pydantic import BaseModel, ConfigDict


class Group(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


def numbers(arguments: Any) -> Any:
    """YAML reads 1e-5 as text; Pydantic makes numbers only where a key is one."""
    if not isinstance(arguments, dict):
        return arguments
    return {name: number(value) for name, value in arguments.items()}


def number(value: Any) -> Any:
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value
