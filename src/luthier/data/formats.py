"""Row formats: detect which one a row is in, and turn it into a conversation."""

import itertools
from collections.abc import Callable
from typing import Any

from luthier.data.conversation import Conversation, Origin
from luthier.data.readers import BadRow

# ShareGPT files name the speakers in several ways; Transformers' templates know one.
_ROLE_NAMES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
    "system": "system",
}


def detect_format(row: dict[str, Any]) -> str | None:
    """The name of the format whose fields ``row`` has, or None."""
    if "messages" in row:
        return "messages"
    if "conversations" in row:
        return "sharegpt"
    if "instruction" in row and "output" in row:
        return "alpaca"
    if "prompt" in row and "completion" in row:
        return "prompt_completion"
    if "text" in row:
        return "text"
    return None


def to_conversation(row: dict[str, Any], fmt: str, origin: Origin) -> Conversation:
    """Read ``row`` as format ``fmt`` (a name that ``detect_format`` gives).

    Raises:
        BadRow: a field is missing, has the wrong type, or there is no answer to learn.
    """
    try:
        conversation = _CONVERTERS[fmt](row, origin)
    except _Wrong as error:
        raise BadRow(origin, str(error)) from None
    if conversation.text is None:
        reason = _fault(conversation.messages)
        if reason is not None:
            raise BadRow(origin, reason)
    return conversation


class _Wrong(Exception):
    """What is wrong with a row, without its place."""


def _text_field(row: dict[str, Any], key: str, default: str | None = None) -> str:
    value = row.get(key, default)
    if value is None:
        value = default
    if not isinstance(value, str):
        kind = "missing" if value is None else f"{type(value).__name__}, not text"
        raise _Wrong(f"'{key}' is {kind}")
    return value


def _rest(row: dict[str, Any], *used: str) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in used}


def _alpaca(row: dict[str, Any], origin: Origin) -> Conversation:
    user = {"role": "user", "content": _text_field(row, "instruction")}
    more = _text_field(row, "input", "")
    if more.strip():
        user["input"] = more
    answer = {"role": "assistant", "content": _text_field(row, "output")}
    system = _text_field(row, "system", "")
    opening = [{"role": "system", "content": system}] if system.strip() else []
    extra = _rest(row, "instruction", "input", "output", "system")
    return Conversation(origin, (*opening, user, answer), extra=extra)


def _prompt_completion(row: dict[str, Any], origin: Origin) -> Conversation:
    prompt, completion = row.get("prompt"), row.get("completion")
    extra = _rest(row, "prompt", "completion")
    if isinstance(prompt, list) and isinstance(completion, list):  # TRL's conversational form
        return Conversation(
            origin, _messages([*prompt, *completion], "role", "content"), extra=extra
        )
    messages = (
        {"role": "user", "content": _text_field(row, "prompt")},
        {"role": "assistant", "content": _text_field(row, "completion")},
    )
    return Conversation(origin, messages, extra=extra)


def _chat(row: dict[str, Any], origin: Origin) -> Conversation:
    return Conversation(
        origin, _messages(row["messages"], "role", "content"), extra=_rest(row, "messages")
    )


def _sharegpt(row: dict[str, Any], origin: Origin) -> Conversation:
    turns = row["conversations"]
    first = turns[0] if isinstance(turns, list) and turns and isinstance(turns[0], dict) else {}
    keys = ("role", "content") if "role" in first else ("from", "value")
    messages = _messages(turns, *keys)
    system = _text_field(row, "system", "")
    if system.strip():
        messages = ({"role": "system", "content": system}, *messages)
    return Conversation(origin, messages, extra=_rest(row, "conversations", "system"))


def _plain(row: dict[str, Any], origin: Origin) -> Conversation:
    text = _text_field(row, "text")
    if not text.strip():
        raise _Wrong("'text' is empty")
    return Conversation(origin, text=text, extra=_rest(row, "text"))


def _messages(turns: Any, role_key: str, content_key: str) -> tuple[dict[str, str], ...]:
    if not isinstance(turns, list) or not turns:
        raise _Wrong("the conversation is not a list of turns")
    messages = []
    for number, turn in enumerate(turns, start=1):
        if not isinstance(turn, dict):
            raise _Wrong(f"turn {number} is not an object")
        role, content = turn.get(role_key), turn.get(content_key)
        if not isinstance(role, str) or role.lower() not in _ROLE_NAMES:
            known = ", ".join(sorted(_ROLE_NAMES))
            raise _Wrong(f"turn {number} has '{role_key}' {role!r}; known are {known}")
        if not isinstance(content, str):
            raise _Wrong(f"turn {number} has no text in '{content_key}'")
        if turn.get("tool_calls"):
            raise _Wrong(f"turn {number} calls tools, which this version cannot train on")
        messages.append({"role": _ROLE_NAMES[role.lower()], "content": content})
    return tuple(messages)


def _fault(messages: tuple[dict[str, str], ...]) -> str | None:
    """Why these messages cannot be trained on, or None."""
    spoken = [m["role"] for m in messages if m["role"] != "system"]
    if any(m["role"] == "system" for m in messages[1:]):
        return "a system message stands after the first turn"
    if "assistant" not in spoken:
        return "there is no assistant turn to learn"
    if spoken[-1] != "assistant":
        return "the last turn is the user's: there is no answer to it"
    if spoken[0] != "user":
        return "the first turn is the assistant's: there is nothing it answers"
    for number, (before, after) in enumerate(itertools.pairwise(spoken), start=2):
        if before == after:
            return f"turns {number - 1} and {number} are both of role {after}"
    if any(not m["content"].strip() for m in messages if m["role"] == "assistant"):
        return "an answer is empty"
    if any(
        not (m["content"] + m.get("input", "")).strip() for m in messages if m["role"] == "user"
    ):
        return "a question is empty"
    return None


_CONVERTERS: dict[str, Callable[[dict[str, Any], Origin], Conversation]] = {
    "alpaca": _alpaca,
    "messages": _chat,
    "sharegpt": _sharegpt,
    "prompt_completion": _prompt_completion,
    "text": _plain,
}
