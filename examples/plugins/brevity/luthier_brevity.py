"""How long an answer is beside its reference, in words: 1 where both have as many."""

from typing import Any

higher_is_better = False


def score(answer: str, row: dict[str, Any]) -> float:
    """``row`` has ``messages`` (of the prompt), ``reference``, and the row's other fields."""
    return len(answer.split()) / max(1, len(row["reference"].split()))
