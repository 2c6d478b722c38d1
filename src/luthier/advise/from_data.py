"""Questions that the data answers: how many good examples, how long, in what form."""

from collections.abc import Sequence
from typing import Any

from luthier.data.check.report import check_data
from luthier.errors import UserError
from luthier.events import OnEvent, ignore

_CHARACTERS_A_TOKEN = 4  # of English text, roughly
# Rows with these findings are not good examples until they are fixed.
_NO_GOOD = ("exact_duplicates", "conflicting_answers", "refusals", "secrets")


def answers_from_data(paths: Sequence[str], on_event: OnEvent = ignore) -> dict[str, Any]:
    """Answers to ``examples``, ``prompt_tokens`` and ``completion_tokens``.

    Rows that cannot be read, or that repeat another, do not count. Tokens are estimated at four
    characters each.

    Raises:
        UserError: a file cannot be read, or has no usable row.
    """
    report = check_data(paths, on_event=on_event)
    usable = report["rows"]["usable"]
    if not usable:
        raise UserError(f"{', '.join(paths)} has no row to train on; luthier data check shows why")
    spoilt = sum(f["count"] for f in report["findings"] if f["id"] in _NO_GOOD)
    lengths = report["lengths"]
    return {
        "examples": max(0, usable - spoilt),
        "prompt_tokens": _tokens(lengths["prompt"]["mean"]),
        "completion_tokens": _tokens(lengths["answer"]["mean"]),
    }


def _tokens(characters: float) -> int:
    return max(1, round(characters / _CHARACTERS_A_TOKEN))
