"""Changes laid over a recipe's groups, before the whole is checked."""

from collections.abc import Mapping
from typing import Any

from luthier.credentials import masked
from luthier.errors import UserError

Changes = Mapping[str, Mapping[str, Any]]  # by group, by key


def merge(tree: Mapping[Any, Any], changes: Changes, origin: str) -> dict[Any, Any]:
    """A copy of ``tree``, a recipe as plain values, with the values of ``changes`` in it.

    Raises:
        UserError: a group that is changed, or what changes it, is not a mapping of keys;
            ``origin`` names the recipe.
    """
    merged = dict(tree)
    for group, keys in changes.items():
        old = merged.get(group)
        old = {} if old is None else old
        for value in (old, keys):
            if not isinstance(value, Mapping):
                shown = masked(repr(value))[:80]
                raise UserError(
                    f"{origin}: '{group}' is a group of keys, so it takes a mapping, not {shown}"
                )
        merged[group] = {**old, **keys}
    return merged
