"""Row formats: detect which one a row is in, and turn it into a conversation."""

from collections.abc import Callable
from typing import Any

from luthier.data.conversation import Conversation, Message, Origin
from luthier.data.readers import BadRow
from luthier.data.turns import WrongTurn, as_turns, fault, read_tools, read_turns

# What a row of each format holds, for messages.
FORMATS = {
    "alpaca": "instruction+output",
    "messages": "messages",
    "sharegpt": "conversations",
    "prompt_completion": "prompt+completion",
    "preference": "chosen+rejected",
    "text": "text",
}

_PROMPT_FIELDS = ("prompt", "question", "instruction")  # of preference rows, in this order


def detect_format(row: dict[str, Any]) -> str | None:
    """The name of the format whose fields ``row`` has, or None."""
    if "chosen" in row and "rejected" in row:
        return "preference"
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


def unknown_format(row: dict[str, Any]) -> str:
    """What to say of a row that ``detect_format`` does not know."""
    known = ", ".join(f"{fields} ({name})" for name, fields in FORMATS.items())
    return f"fields {', '.join(map(str, row)) or '(none)'} match no known format: {known}"


def to_conversation(row: dict[str, Any], fmt: str, origin: Origin) -> Conversation:
    """Read ``row`` as format ``fmt`` (a name that ``detect_format`` gives).

    Raises:
        BadRow: a field is missing, has the wrong type, or there is no answer to learn.
    """
    try:
        conversation = _CONVERTERS[fmt](row, origin)
    except WrongTurn as error:
        raise BadRow(origin, str(error)) from None
    if conversation.text is None:
        reason = fault(conversation.messages)
        if reason is None and conversation.rejected is not None:
            reason = fault((*conversation.prompt, conversation.rejected))
            reason = reason and f"with the rejected answer: {reason}"
        if reason is not None:
            raise BadRow(origin, reason)
    return conversation


def _text_field(row: dict[str, Any], key: str, default: str | None = None) -> str:
    value = row.get(key, default)
    if value is None:
        value = default
    if not isinstance(value, str):
        kind = "missing" if value is None else f"{type(value).__name__}, not text"
        raise WrongTurn(f"'{key}' is {kind}")
    return value


def _rest(row: dict[str, Any], *used: str) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in used}


def _with_system(messages: tuple[Message, ...], row: dict[str, Any]) -> tuple[Message, ...]:
    system = _text_field(row, "system", "")
    return ({"role": "system", "content": system}, *messages) if system.strip() else messages


def _with_tools(messages: tuple[Message, ...], row: dict[str, Any]) -> tuple[Message, ...]:
    tools = read_tools(row.get("tools"))
    return ({**messages[0], "tools": tools}, *messages[1:]) if tools else messages


def _alpaca(row: dict[str, Any], origin: Origin) -> Conversation:
    user = _question(row, "instruction")
    answer = {"role": "assistant", "content": _text_field(row, "output")}
    extra = _rest(row, "instruction", "input", "output", "system")
    return Conversation(origin, _with_system((user, answer), row), extra=extra)


def _question(row: dict[str, Any], key: str) -> Message:
    user = {"role": "user", "content": _text_field(row, key)}
    more = _text_field(row, "input", "")
    if more.strip():
        user["input"] = more
    return user


def _prompt_completion(row: dict[str, Any], origin: Origin) -> Conversation:
    prompt, completion = as_turns(row.get("prompt")), as_turns(row.get("completion"))
    if prompt is not None and completion is not None:  # TRL's conversational form
        messages = _with_tools(read_turns([*prompt, *completion]), row)
        return Conversation(origin, messages, extra=_rest(row, "prompt", "completion", "tools"))
    messages = (
        {"role": "user", "content": _text_field(row, "prompt")},
        {"role": "assistant", "content": _text_field(row, "completion")},
    )
    return Conversation(origin, messages, extra=_rest(row, "prompt", "completion"))


def _chat(row: dict[str, Any], origin: Origin) -> Conversation:
    messages = _with_tools(read_turns(row["messages"]), row)
    return Conversation(origin, messages, extra=_rest(row, "messages", "tools"))


def _sharegpt(row: dict[str, Any], origin: Origin) -> Conversation:
    messages = _with_tools(_with_system(read_turns(row["conversations"]), row), row)
    return Conversation(origin, messages, extra=_rest(row, "conversations", "system", "tools"))


def _preference(row: dict[str, Any], origin: Origin) -> Conversation:
    """Both answers as texts after a prompt, or as turns, with the prompt in them or apart."""
    chosen, rejected = as_turns(row["chosen"]), as_turns(row["rejected"])
    key = next((key for key in _PROMPT_FIELDS if row.get(key) is not None), None)
    used = ["chosen", "rejected", "system", "tools"]
    if chosen is not None and rejected is not None:
        before = as_turns(row[key]) if key else None
        better, worse = (read_turns([*(before or []), *turns]) for turns in (chosen, rejected))
        if key and before is None and better[0]["role"] == "assistant":
            question = _question(row, key)
            better, worse = (question, *better), (question, *worse)
        if better[:-1] != worse[:-1]:
            raise WrongTurn("'chosen' and 'rejected' differ before their last turn")
        # A prompt that the turns repeat (UltraFeedback's) is told by them already.
        used += [key] if key else []
    else:
        if key is None:
            raise WrongTurn("there is no 'prompt' (or 'question') that 'chosen' answers")
        question = _question(row, key)
        better = (question, {"role": "assistant", "content": _text_field(row, "chosen")})
        worse = (question, {"role": "assistant", "content": _text_field(row, "rejected")})
        used += [key, "input"]
    messages = _with_tools(_with_system(better, row), row)
    return Conversation(origin, messages, extra=_rest(row, *used), rejected=worse[-1])


def _plain(row: dict[str, Any], origin: Origin) -> Conversation:
    text = _text_field(row, "text")
    if not text.strip():
        raise WrongTurn("'text' is empty")
    return Conversation(origin, text=text, extra=_rest(row, "text"))


_CONVERTERS: dict[str, Callable[[dict[str, Any], Origin], Conversation]] = {
    "alpaca": _alpaca,
    "messages": _chat,
    "sharegpt": _sharegpt,
    "prompt_completion": _prompt_completion,
    "preference": _preference,
    "text": _plain,
}
