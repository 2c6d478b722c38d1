"""The one form that every data format becomes."""

from dataclasses import dataclass, field
from typing import Any

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a row came from: file as the user named it, and its line (or row) from 1."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class Conversation:
    """One row of training data: ``messages``, or plain ``text``; never both.

    A message is ``{"role": system|user|assistant, "content": str}``; a user message may carry an
    ``input`` besides (Alpaca's third field), which templates without a place for it see as part
    of the content. ``extra`` keeps the row's other fields, for metrics that want them.
    """

    origin: Origin
    messages: tuple[dict[str, str], ...] = ()
    text: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def reference(self) -> str:
        """The last assistant answer, which an evaluation compares with; empty for plain text."""
        return self.messages[-1]["content"] if self.messages else ""

    @property
    def prompt(self) -> tuple[dict[str, str], ...]:
        """The messages before the last answer."""
        return self.messages[:-1]

    def to_row(self) -> dict[str, Any]:
        """A JSON object that ``from_row`` turns back into an equal conversation."""
        body = {"text": self.text} if self.text is not None else {"messages": list(self.messages)}
        return {**body, "origin": [self.origin.file, self.origin.line], "extra": self.extra}

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> "Conversation":
        return cls(
            origin=Origin(*row["origin"]),
            messages=tuple(row.get("messages", ())),
            text=row.get("text"),
            extra=row["extra"],
        )


def flatten(messages: tuple[dict[str, str], ...]) -> list[dict[str, str]]:
    """Messages with each ``input`` joined to its content, for templates without a place for it."""
    return [
        {"role": m["role"], "content": f"{m['content']}\n\n{m['input']}"}
        if m.get("input")
        else {"role": m["role"], "content": m["content"]}
        for m in messages
    ]
