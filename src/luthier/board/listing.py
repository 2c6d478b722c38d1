"""A page of the list of runs, sorted and filtered here: a browser gets what it shows."""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from luthier.board.index import Index, Summary
from luthier.board.look import SAID

MOST = 100  # rows that a browser gets at a time
_READING = 0.3  # seconds that it waits for runs to be read
_COMPARED = re.compile(r"(\w+)([<>])([-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?)", re.IGNORECASE)

# What a column is called in the browser.
_FIGURES: dict[str, Callable[[Summary], float | None]] = {
    "step": lambda row: row.step,
    "loss": lambda row: row.loss,
    "validation": lambda row: row.eval_loss,
    "speed": lambda row: row.tokens_per_second,
    "memory": lambda row: None if row.memory_bytes is None else row.memory_bytes / 2**30,
    "seconds": lambda row: row.seconds,
    "changed": lambda row: row.changed,
}
_TEXTS: dict[str, Callable[[Summary], str]] = {
    "name": lambda row: row.name,
    "state": lambda row: row.state,
    "verdict": lambda row: row.verdict,
    "forgetting": lambda row: row.forgetting,
    "model": lambda row: row.model,
    "method": lambda row: row.method,
    "tags": lambda row: " ".join(row.tags),
}


def page_of(
    index: Index, start: int = 0, end: int = MOST, sort: str = "", order: str = "", text: str = ""
) -> dict[str, Any]:
    """The rows from ``start`` to ``end``, at most ``MOST``, and how many the filter leaves."""
    found = chosen(index.rows(_READING), text, sort, order == "desc")
    start = max(0, start)
    shown = found[start : max(0, min(end, start + MOST))]
    return {"rows": [as_row(row) for row in shown], "count": len(found)}


def chosen(
    rows: Sequence[Summary], text: str, sort: str = "", descending: bool = False
) -> list[Summary]:
    """The rows that a filter leaves, in the order of a column; what it is unknown of comes last.

    Args:
        text: words that all have to be somewhere in a row, or ``column<number``, ``column>number``.
        sort: a column; where there is none, as they were.
    """
    tests = [_test(word) for word in text.split()]
    left = [row for row in rows if all(test(row) for test in tests)]
    if sort in _FIGURES:
        figure = _FIGURES[sort]
        known = [row for row in left if figure(row) is not None]
        known.sort(key=lambda row: figure(row) or 0.0, reverse=descending)
        return known + [row for row in left if figure(row) is None]
    if sort in _TEXTS:
        word = _TEXTS[sort]
        known = [row for row in left if word(row)]
        known.sort(key=lambda row: word(row).casefold(), reverse=descending)
        return known + [row for row in left if not word(row)]
    return left


def _test(word: str) -> Callable[[Summary], bool]:
    found = _COMPARED.fullmatch(word)
    if found is not None and found[1] in _FIGURES:
        figure, bound, less = _FIGURES[found[1]], float(found[3]), found[2] == "<"

        def compared(row: Summary) -> bool:
            value = figure(row)
            return value is not None and (value < bound if less else value > bound)

        return compared
    part = word.casefold()
    return lambda row: (
        part in SAID.get(row.verdict, "")
        or any(part in text(row).casefold() for text in _TEXTS.values())
    )


def as_row(summary: Summary) -> dict[str, Any]:
    """What the list shows of a run; what is not known is not in it."""
    row: dict[str, Any] = {name: text(summary) for name, text in _TEXTS.items()}
    row |= {name: figure(summary) for name, figure in _FIGURES.items()}
    row["tags"] = list(summary.tags)
    return {
        name: value
        for name, value in row.items()
        if value not in (None, "", [])
        and not (isinstance(value, float) and not math.isfinite(value))
    }
