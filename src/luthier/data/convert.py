"""Conversations to rows of any format: the way back of ``formats``."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luthier.data.conversation import Conversation, Message, flatten
from luthier.data.foreign import read_any
from luthier.data.formats import FORMATS
from luthier.data.readers import BadRow
from luthier.data.rows import add_names, read_row
from luthier.data.writers import write_rows
from luthier.errors import UserError
from luthier.events import OnEvent, ignore

_SHOWN = 5  # examples in a message
_SHAREGPT_NAMES = {"user": "human", "assistant": "gpt", "system": "system", "tool": "observation"}


class CannotHold(Exception):
    """A format has no place for something in a conversation."""


def to_row(conversation: Conversation, fmt: str) -> dict[str, Any]:
    """The conversation as a row of ``fmt``, its other fields kept.

    Raises:
        CannotHold: the format has no place for turns, a system prompt, calls, or the one answer.
    """
    row = _WRITERS[fmt](conversation)
    return {**{k: v for k, v in conversation.extra.items() if k not in row}, **row}


def _spoken(conversation: Conversation, fmt: str) -> tuple[Message, ...]:
    if conversation.text is not None:
        raise CannotHold(f"plain text has no turns, but {fmt} needs them")
    return conversation.messages


def _tools(messages: Sequence[Message]) -> dict[str, Any]:
    tools = messages[0].get("tools")
    return {"tools": tools} if tools else {}


def _turns(messages: tuple[Message, ...]) -> list[Message]:
    """Turns with all that they say, their own fields and flags too."""
    return [
        {
            **turn,
            **message.get("unused", {}),
            **({} if message.get("train", True) else {"weight": 0}),
        }
        for turn, message in zip(flatten(messages), messages, strict=True)
    ]


def _texts_alone(messages: Sequence[Message], fmt: str) -> None:
    """Refuse what a format of texts has no place for."""
    for key, what in (
        ("reasoning_content", "reasoning"),
        ("train", "answers that are excluded from the loss"),
        ("unused", "other fields of turns"),
    ):
        if any(key in message for message in messages):
            raise CannotHold(f"{fmt} has no place for {what}; convert to messages")


def _messages(conversation: Conversation) -> dict[str, Any]:
    messages = _spoken(conversation, "messages")
    return {"messages": _turns(messages), **_tools(messages)}


def _sharegpt(conversation: Conversation) -> dict[str, Any]:
    messages = _spoken(conversation, "sharegpt")
    _texts_alone(messages, "sharegpt")
    turns = []
    for turn in flatten(messages):
        calls = turn.get("tool_calls", [])
        if not calls:
            turns.append({"from": _SHAREGPT_NAMES[turn["role"]], "value": turn["content"]})
            continue
        if turn["content"] or len(calls) > 1:
            raise CannotHold("sharegpt allows one tool call per turn, without text beside it")
        turns.append({"from": "function_call", "value": json.dumps(calls[0]["function"])})
    return {"conversations": turns, **_tools(messages)}


def _alpaca(conversation: Conversation) -> dict[str, Any]:
    messages = _spoken(conversation, "alpaca")
    _texts_alone(messages, "alpaca")
    system = [m for m in messages if m["role"] == "system"]
    rest = messages[len(system) :]
    if len(rest) != 2 or any("tool_calls" in m or "tools" in m for m in messages):
        raise CannotHold("alpaca allows one question and one answer, without tools")
    row = {
        "instruction": rest[0]["content"],
        "input": rest[0].get("input", ""),
        "output": rest[1]["content"],
    }
    return {**row, "system": system[0]["content"]} if system else row


def _prompt_completion(conversation: Conversation) -> dict[str, Any]:
    messages = _spoken(conversation, "prompt_completion")
    turns = _turns(messages)
    more = ("tool_calls", "tools", "reasoning_content", "train", "unused")
    plain = len(turns) == 2 and not any(key in turn for turn in messages for key in more)
    if plain:
        return {"prompt": turns[0]["content"], "completion": turns[1]["content"]}
    return {"prompt": turns[:-1], "completion": turns[-1:], **_tools(messages)}


def _text(conversation: Conversation) -> dict[str, Any]:
    if conversation.text is None:
        raise CannotHold(
            "turns become text only through a model's chat template; train on them as they are"
        )
    return {"text": conversation.text}


def _preference(conversation: Conversation) -> dict[str, Any]:
    messages = _spoken(conversation, "preference")
    if conversation.rejected is None:
        raise CannotHold("there is no rejected answer")
    turns, worse = flatten(messages), flatten((conversation.rejected,))
    if len(turns) == 2 and "tool_calls" not in turns[1] and not _tools(messages):
        better, rejected = turns[1]["content"], worse[0]["content"]
        return {"prompt": turns[0]["content"], "chosen": better, "rejected": rejected}
    row = {"prompt": turns[:-1], "chosen": turns[-1:], "rejected": worse}
    return {**row, **_tools(messages)}


_WRITERS: dict[str, Callable[[Conversation], dict[str, Any]]] = {
    "alpaca": _alpaca,
    "messages": _messages,
    "sharegpt": _sharegpt,
    "prompt_completion": _prompt_completion,
    "preference": _preference,
    "text": _text,
}


@dataclass
class Converted:
    """What became of the rows.

    Attributes:
        formats: rows by the format they had.
        columns: fields of it that rows had under other names, and those names.
        left_out: ``file:line: why`` of rows that could not be read or held.
        rejected_dropped: preference pairs of which only the chosen answer was kept.
    """

    written: int = 0
    formats: Counter[str] = field(default_factory=Counter)
    columns: dict[str, str] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    rejected_dropped: int = 0


def convert_data(
    sources: Sequence[str],
    to: str,
    out: Path,
    skip_bad: bool = False,
    on_event: OnEvent = ignore,
    columns: Mapping[str, str] | None = None,
) -> Converted:
    """Write the rows of ``sources`` to ``out`` in format ``to``; ``columns`` as in a recipe.

    Raises:
        UserError: an unknown format, an ``out`` that cannot be written, or a row that cannot be read
            or held while ``skip_bad`` is not set; nothing is written then.
    """
    if to not in FORMATS:
        raise UserError(f"unknown format '{to}'; known: {', '.join(FORMATS)}")
    converted = Converted()
    rows = _rows(sources, to, converted, skip_bad, on_event, columns)
    converted.written = write_rows(out, rows)
    return converted


def _rows(
    sources: Sequence[str],
    to: str,
    converted: Converted,
    skip_bad: bool,
    on_event: OnEvent,
    columns: Mapping[str, str] | None,
) -> Iterator[dict[str, Any]]:
    for source in sources:
        for item in read_any(source, on_event):
            try:
                if isinstance(item, BadRow):
                    raise item
                origin, row = item
                layout, conversation = read_row(row, origin, columns)
                made = to_row(conversation, to)
            except BadRow as bad:
                converted.left_out.append(str(bad))
            except CannotHold as error:
                converted.left_out.append(f"{origin}: {error}")
            else:
                converted.formats[layout.kind] += 1
                add_names(converted.columns, row, layout.columns)
                converted.rejected_dropped += (
                    conversation.rejected is not None and to != "preference"
                )
                yield made
    if converted.left_out and not skip_bad:
        shown = "\n  ".join(converted.left_out[:_SHOWN])
        raise UserError(
            f"{len(converted.left_out)} rows cannot be converted, so nothing is written:\n  {shown}\n"
            "fix them, or skip them with --on-bad-row skip"
        )
