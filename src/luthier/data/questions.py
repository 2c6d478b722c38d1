"""Rows to ask a model: any format of ``formats.py``, with or without the answer."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from luthier.data.conversation import Message, Origin
from luthier.data.readers import BadRow
from luthier.data.rows import find_layout, unknown_layout
from luthier.data.turns import as_turns

_NO_ANSWER = "-"  # takes the place of a missing answer, so that it reads as one that has


@dataclass(frozen=True)
class Question:
    """What to ask: ``prompt`` (messages, or text to continue).

    Attributes:
        reference: the answer that the row came with, if any.
        extra: the row's other fields.
    """

    origin: Origin
    prompt: tuple[Message, ...] | str
    reference: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)


def to_question(
    row: dict[str, Any], origin: Origin, columns: Mapping[str, str] | None = None
) -> Question:
    """Read a row as a question; ``columns`` as in a recipe.

    Raises:
        BadRow: it fits no format, or something but its answer is wrong.
    """
    named = find_layout(row, columns) or find_layout({**row, "completion": _NO_ANSWER}, columns)
    filled = _with_an_answer(row, named.columns if named is not None else {})
    whole = filled if filled is not None else row
    layout = find_layout(whole, columns)
    if layout is None:
        raise BadRow(origin, unknown_layout(row, columns))
    read = layout.conversation(whole, origin)
    if read.text is not None:
        return Question(origin, read.text, extra=read.extra)
    reference = None if filled is not None else read.reference
    return Question(origin, read.prompt, reference, read.extra)


def _with_an_answer(row: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any] | None:
    """A copy with a stand-in where the answer is missing; None where it is there.

    ``names`` are the row's own of fields that it calls otherwise.
    """
    for ours in ("messages", "conversations"):
        key = names.get(ours, ours)
        if key in row:
            turns = as_turns(row[key])
            if not turns or not isinstance(turns[-1], dict):
                return None
            last = str(turns[-1].get("role", turns[-1].get("from"))).lower()
            if last not in ("user", "human", "tool", "observation", "function"):
                return None
            return {**row, key: [*turns, {"role": "assistant", "content": _NO_ANSWER}]}
    for pair in (("instruction", "output"), ("prompt", "completion")):
        question, answer = (names.get(ours, ours) for ours in pair)
        if question in row and "chosen" not in row and row.get(answer) in (None, "", []):
            turns = as_turns(row[question])
            stand_in: Any = _NO_ANSWER
            if turns is not None:
                stand_in = [{"role": "assistant", "content": _NO_ANSWER}]
            return {**row, answer: stand_in}
    return None
