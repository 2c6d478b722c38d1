"""What is wrong with a recipe, in words: one line for each of Pydantic's findings."""

import difflib
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from luthier.credentials import masked

_SHOWN = 200  # characters of a wrong value in a message


def explain_errors(error: ValidationError, keys: Sequence[str], groups: Sequence[str]) -> str:
    """Every fault, one a line; an unknown key comes with the nearest of ``keys`` and ``groups``."""
    return "\n".join(_explain(dict(issue), keys, groups) for issue in error.errors())


def _explain(issue: dict[str, Any], keys: Sequence[str], groups: Sequence[str]) -> str:
    # Members of a union add steps to the location that mean nothing to a reader.
    where = ".".join(str(step) for step in issue["loc"][:2])
    if issue["type"] == "extra_forbidden":
        return f"unknown key '{where}'{nearest_key(where, keys, groups)}"
    if issue["type"] == "missing":
        return f"'{where}' is missing"
    message = issue["msg"].removeprefix("Value error, ")
    if not where:
        return message
    given = masked(repr(issue["input"]))
    given = given if len(given) <= _SHOWN else given[:_SHOWN] + " …"
    return f"'{where}' is {given}: {message[0].lower()}{message[1:]}"


def nearest_key(where: str, keys: Sequence[str], groups: Sequence[str]) -> str:
    """The end of a message about the unknown key ``where``: the nearest one, else the groups."""
    leaf = where.rpartition(".")[2]
    same_leaf = [key for key in keys if key.rpartition(".")[2] == leaf]
    near = same_leaf or difflib.get_close_matches(where, [*keys, *groups], n=1, cutoff=0.6)
    if not near:
        leaves = {key.rpartition(".")[2]: key for key in keys}
        near = [leaves[name] for name in difflib.get_close_matches(leaf, leaves, n=1, cutoff=0.6)]
    return f"; did you mean '{near[0]}'?" if near else f"; groups are {', '.join(groups)}"
