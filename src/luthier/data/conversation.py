"""The one form that every data format becomes."""

import json
from dataclasses import dataclass, field
from typing import Any

ROLES = ("system", "user", "assistant", "tool")

Message = dict[str, Any]


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

    A message is ``{"role": …, "content": str}`` with a role of ``ROLES``, and may hold besides:

    - ``input`` (user): Alpaca's third field, which templates without a place for it see as part of
      the content;
    - ``tool_calls`` (assistant): ``{"type": "function", "function": {"name", "arguments"}}`` each,
      the arguments an object; the content may be empty then;
    - ``reasoning_content`` (assistant): what it thought before the content;
    - ``train`` (assistant): False where the answer must not count in the loss;
    - ``name`` and ``tool_call_id`` (tool): whose answer it is;
    - ``unused``: the turn's fields that mean nothing to us, so that no conversion loses them;
    - ``tools`` (first message): the tools that the model may call, as JSON schemas. They are in
      a message so that they go wherever the prompt goes: to training and to inference alike.

    ``rejected`` is the worse answer of a preference pair, in place of the last message. ``extra``
    keeps the row's other fields, for metrics that want them.
    """

    origin: Origin
    messages: tuple[Message, ...] = ()
    text: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    rejected: Message | None = None

    @property
    def answers(self) -> list[int]:
        """Places of the messages that are learned."""
        return learned(self.messages)

    @property
    def reference(self) -> str:
        """The last learned answer, which an evaluation compares with, tool calls in it as JSON.

        Empty for plain text.
        """
        return spoken(self.messages[self.answers[-1]]) if self.answers else ""

    @property
    def prompt(self) -> tuple[Message, ...]:
        """The messages before the last learned answer."""
        return self.messages[: self.answers[-1]] if self.answers else ()

    def to_row(self) -> dict[str, Any]:
        """A JSON object that ``from_row`` turns back into an equal conversation."""
        body: dict[str, Any] = {"messages": list(self.messages)}
        if self.text is not None:
            body = {"text": self.text}
        if self.rejected is not None:
            body["rejected"] = self.rejected
        return {**body, "origin": [self.origin.file, self.origin.line], "extra": self.extra}

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> "Conversation":
        return cls(
            origin=Origin(*row["origin"]),
            messages=tuple(row.get("messages", ())),
            text=row.get("text"),
            extra=row["extra"],
            rejected=row.get("rejected"),
        )


def learned(messages: tuple[Message, ...]) -> list[int]:
    """Places of the answers that count in the loss."""
    return [
        index
        for index, message in enumerate(messages)
        if message["role"] == "assistant" and message.get("train", True)
    ]


def spoken(message: Message) -> str:
    """What a message says: its content, and one line of JSON for each tool call in it."""
    calls = [
        json.dumps(call["function"], ensure_ascii=False) for call in message.get("tool_calls", ())
    ]
    return "\n".join(filter(None, [message["content"], *calls]))


# Fields of a message that are ours: no template and no other format knows them.
_OURS = ("tools", "train", "unused")


def flatten(messages: tuple[Message, ...], *, keep_input: bool = False) -> list[Message]:
    """Messages without the fields that are ours, each ``input`` joined to its content.

    ``keep_input`` leaves it apart, for a template that has a place for it.
    """
    flat = []
    for message in messages:
        copy = {key: value for key, value in message.items() if key not in _OURS}
        if message.get("input") and not keep_input:
            copy["content"] = f"{message['content']}\n\n{copy.pop('input')}"
        flat.append(copy)
    return flat
