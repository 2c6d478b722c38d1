"""What is wrong with a recipe, in words: one line for each of Pydantic's findings."""

import difflib
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from luthier.credentials import masked
from luthier.recipe.elsewhere import counterpart, foreign_names

_SHOWN = 200  # characters of a wrong value in a message
# How alike a word and the one that was meant are: a slip of the hand, not another word. There are
# hundreds of names of others, so that some are near to anything.
_NEAR, _SAME = 0.75, 0.9


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
    if len(issue["loc"]) == 1 and issue["type"] == "model_type":
        return f"'{where}' is a group of keys, so it takes a mapping, not {given}"
    return f"'{where}' is {given}: {message[0].lower()}{message[1:]}"


def nearest_key(where: str, keys: Sequence[str], groups: Sequence[str]) -> str:
    """The end of a message about the unknown key ``where``: what it is here, else the nearest.

    Names of other tools come first: ``batch_size`` is not what is nearest to it.
    """
    group, _, leaf = where.rpartition(".")
    there = counterpart(leaf)
    if there is not None and there.key is not None:
        return there.hint
    ours = [key for key in keys if key.rpartition(".")[2] == leaf]
    if len(ours) == 1 and not group:
        return f"; write it under {ours[0].partition('.')[0]}:, as '{ours[0]}'"
    if ours:
        return f"; did you mean {' or '.join(map(repr, ours))}?"
    if there is not None:
        return there.hint
    if not group and (near := difflib.get_close_matches(leaf, groups, n=1, cutoff=_NEAR)):
        return f"; did you mean '{near[0]}'?"
    beside = {key.rpartition(".")[2]: key for key in keys if key.startswith(f"{group}.")}
    leaves = {key.rpartition(".")[2]: key for key in keys} | beside
    for ours_of in (beside, leaves):
        for name in difflib.get_close_matches(leaf, ours_of, n=1, cutoff=_NEAR):
            return f"; did you mean '{leaves[name]}'?"
    for name in difflib.get_close_matches(leaf, list(foreign_names()), n=1, cutoff=_SAME):
        meant = counterpart(name)
        assert meant is not None
        return meant.hint
    return f"; groups are {', '.join(groups)}"
