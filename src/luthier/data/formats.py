"""Row formats: detect which one a row is in, and turn it into a conversation."""

from collections.abc import Callable
from typing import Any

from luthier.data.conversation import Conversation, Message, Origin
from luthier.data.readers import BadRow
from luthier.data.transcripts import transcript
from luthier.data.turns import WrongTurn, as_turns, fault, parsed, read_tools, read_turns

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
    """The message for a row that ``detect_format`` does not know."""
    known = ", ".join(f"{fields} ({name})" for name, fields in FORMATS.items())
    return f"fields {', '.join(map(str, row)) or '(none)'} match no known format: {known}"


def to_conversation(row: dict[str, Any], fmt: str, origin: Origin) -> Conversation:
    """Read ``row`` as format ``fmt`` (a name that ``detect_format`` gives).

    Raises:
        BadRow: a field is missing, has the wrong type, or there is no answer to train on.
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


# Beside the fields of a format, these lead or complete the conversation of any row.
_BESIDE = ("system", "system_prompt", "history", "tools", "functions")

# What a row may hold besides text; a row with something in one of them is not text alone.
_MEDIA = ("image", "images", "audio", "audios", "video", "videos")


def _read(
    row: dict[str, Any], messages: tuple[Message, ...], *used: str
) -> tuple[tuple[Message, ...], dict[str, Any]]:
    """``messages`` with what stands beside them in the row, and the fields that are left.

    Raises:
        WrongTurn: the row holds images or sound, or tells its system prompt twice.
    """
    for key in _MEDIA:
        if row.get(key):
            raise WrongTurn(f"'{key}' is not empty: this version trains on text")
    messages = _with_tools(_with_system(_with_history(messages, row), row), row)
    kept = {key: value for key, value in row.items() if key not in (*used, *_BESIDE, *_MEDIA)}
    return messages, kept


def _with_system(messages: tuple[Message, ...], row: dict[str, Any]) -> tuple[Message, ...]:
    texts = {_text_field(row, key, "") for key in ("system", "system_prompt")}
    texts = {text for text in texts if text.strip()}
    if messages[0]["role"] == "system" and texts - {messages[0]["content"]}:
        raise WrongTurn("there are two system prompts: one beside the turns and one among them")
    if len(texts) > 1:
        raise WrongTurn("'system' and 'system_prompt' hold different texts")
    if not texts or messages[0]["role"] == "system":
        return messages
    return ({"role": "system", "content": texts.pop()}, *messages)


def _with_history(messages: tuple[Message, ...], row: dict[str, Any]) -> tuple[Message, ...]:
    """Earlier turns as LLaMA-Factory writes them: a list of pairs, question and answer."""
    history = parsed(row.get("history"))
    if not history:
        return messages
    pairs = isinstance(history, list) and all(
        isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(t, str) for t in pair)
        for pair in history
    )
    if pairs:
        turns = [
            {"role": role, "content": text}
            for pair in history
            for role, text in zip(("user", "assistant"), pair, strict=True)
        ]
        earlier = read_turns(turns)
    elif isinstance(history, list) and all(isinstance(turn, dict) for turn in history):
        earlier = read_turns(history)
    else:
        raise WrongTurn("'history' is not a list of pairs [question, answer]")
    lead = 1 if messages[0]["role"] == "system" else 0
    return (*messages[:lead], *earlier, *messages[lead:])


def _with_tools(messages: tuple[Message, ...], row: dict[str, Any]) -> tuple[Message, ...]:
    tools = read_tools(row.get("tools"))
    old = read_tools(row.get("functions"))  # OpenAI's old name, without the type around each
    if tools and old:
        raise WrongTurn("'tools' and 'functions' are both there")
    tools = tools or [{"type": "function", "function": function} for function in old]
    return ({**messages[0], "tools": tools}, *messages[1:]) if tools else messages


def _alpaca(row: dict[str, Any], origin: Origin) -> Conversation:
    user = _question(row, "instruction")
    answer = {"role": "assistant", "content": _text_field(row, "output")}
    messages, extra = _read(row, (user, answer), "instruction", "input", "output")
    return Conversation(origin, messages, extra=extra)


def _question(row: dict[str, Any], key: str) -> Message:
    user = {"role": "user", "content": _text_field(row, key)}
    more = _text_field(row, "input", "")
    if more.strip():
        user["input"] = more
    return user


def _prompt_completion(row: dict[str, Any], origin: Origin) -> Conversation:
    prompt, completion = as_turns(row.get("prompt")), as_turns(row.get("completion"))
    if prompt is not None and completion is not None:  # TRL's conversational form
        turns = read_turns([*prompt, *completion])
    else:
        turns = (
            {"role": "user", "content": _text_field(row, "prompt")},
            {"role": "assistant", "content": _text_field(row, "completion")},
        )
    messages, extra = _read(row, turns, "prompt", "completion")
    return Conversation(origin, messages, extra=extra)


def _chat(row: dict[str, Any], origin: Origin) -> Conversation:
    messages, extra = _read(row, read_turns(row["messages"]), "messages")
    return Conversation(origin, messages, extra=extra)


def _sharegpt(row: dict[str, Any], origin: Origin) -> Conversation:
    messages, extra = _read(row, read_turns(row["conversations"]), "conversations")
    return Conversation(origin, messages, extra=extra)


def _preference(row: dict[str, Any], origin: Origin) -> Conversation:
    """Both answers as texts after a prompt, or as turns, with the prompt in them or apart.

    Texts without a prompt may be transcripts of the whole conversation.
    """
    chosen, rejected = as_turns(row["chosen"]), as_turns(row["rejected"])
    key = next((key for key in _PROMPT_FIELDS if row.get(key) is not None), None)
    if key is None and chosen is None and rejected is None:
        chosen, rejected = (transcript(_text_field(row, name)) for name in ("chosen", "rejected"))
    used = ["chosen", "rejected"]
    if chosen is not None and rejected is not None:
        before = as_turns(row[key]) if key else None
        better, worse = (read_turns([*(before or []), *turns]) for turns in (chosen, rejected))
        if key and before is None and better[0]["role"] == "assistant":
            question = _question(row, key)
            better, worse = (question, *better), (question, *worse)
        if better[:-1] != worse[:-1]:
            raise WrongTurn("'chosen' and 'rejected' differ before their last turn")
        # The turns already include a prompt that they repeat (UltraFeedback).
        used += [key] if key else []
    else:
        if key is None:
            raise WrongTurn(
                "there is no 'prompt' (or 'question') that 'chosen' answers, and 'chosen' is no "
                "transcript (Human: … Assistant: …)"
            )
        question = _question(row, key)
        better = (question, {"role": "assistant", "content": _text_field(row, "chosen")})
        worse = (question, {"role": "assistant", "content": _text_field(row, "rejected")})
        used += [key, "input"]
    messages, extra = _read(row, better, *used)
    return Conversation(origin, messages, extra=extra, rejected=worse[-1])


def _plain(row: dict[str, Any], origin: Origin) -> Conversation:
    text = _text_field(row, "text")
    if not text.strip():
        raise WrongTurn("'text' is empty")
    return Conversation(origin, text=text, extra={k: v for k, v in row.items() if k != "text"})


_CONVERTERS: dict[str, Callable[[dict[str, Any], Origin], Conversation]] = {
    "alpaca": _alpaca,
    "messages": _chat,
    "sharegpt": _sharegpt,
    "prompt_completion": _prompt_completion,
    "preference": _preference,
    "text": _plain,
}
