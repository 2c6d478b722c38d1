"""The probe's questions and texts, written for this project and shipped with it."""

import json
import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

UNRELATED = "unrelated"  # the area whose answers are not scored, but looked at for leakage


@dataclass(frozen=True)
class Item:
    """One question.

    Attributes:
        answer: the right choice, and ``wrong`` the others, where it is multiple choice.
        pattern: what a right answer matches, whatever its case, where it is open.
    """

    id: str
    area: str
    question: str
    answer: str | None = None
    wrong: tuple[str, ...] = ()
    pattern: str | None = None

    def right(self, answer: str) -> bool:
        """Whether an open question is answered by ``answer``."""
        assert self.pattern is not None
        return re.search(self.pattern, answer, re.IGNORECASE) is not None


@cache
def load_items() -> tuple[Item, ...]:
    """All items, ordered by id."""
    return tuple(Item(**{**row, "wrong": tuple(row.get("wrong", ()))}) for row in _read("items"))


@cache
def load_passages() -> tuple[str, ...]:
    """General prose, for perplexity."""
    return tuple(row["text"] for row in _read("passages"))


def _read(name: str) -> list[dict[str, Any]]:
    file = files("luthier.evaluate.probe").joinpath(f"{name}.jsonl")
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]
