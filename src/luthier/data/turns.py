"""Lists of turns, as OpenAI, ShareGPT and their kin write them, to messages."""

import itertools
import json
from typing import Any

from luthier.data.conversation import Message

# Files name the speakers in several ways; Transformers' templates know one.
_ROLE_NAMES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
    "system": "system",
    "developer": "system",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "function_call": "assistant",  # ShareGPT: the content is the call, as JSON
}

_WHOSE = {"user": "the user's", "assistant": "the assistant's", "tool": "a tool's"}


class WrongTurn(Exception):
    """What is wrong with a row, without its place."""


def read_turns(turns: Any) -> tuple[Message, ...]:
    """Messages of a list of turns in either spelling, role/content or from/value.

    Raises:
        WrongTurn: it is no such list, or a turn is not one of text and tool calls.
    """
    turns = _parsed(turns)
    if not isinstance(turns, list) or not turns:
        raise WrongTurn("the conversation is not a list of turns")
    return tuple(_turn(turn, number) for number, turn in enumerate(turns, start=1))


def _parsed(value: Any) -> Any:
    """Lists and objects as they are; out of CSV and Parquet they may come as JSON text."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            parsed = json.loads(value)
            json.dumps(parsed, ensure_ascii=False).encode()  # half a surrogate pair is not text
        except (ValueError, RecursionError):
            return value
        return parsed
    return value


def as_turns(value: Any) -> list[Any] | None:
    """``value`` if it is a list of turns, or JSON text of one; None if it is text or else."""
    if isinstance(value, list):
        return value
    parsed = _parsed(value)
    turns = isinstance(parsed, list) and bool(parsed)
    if turns and all(isinstance(turn, dict) and {"role", "from"} & turn.keys() for turn in parsed):
        return list(parsed)
    return None


def _turn(turn: Any, number: int) -> Message:
    if not isinstance(turn, dict):
        raise WrongTurn(f"turn {number} is not an object")
    role_key, content_key = ("role", "content") if "role" in turn else ("from", "value")
    name = turn.get(role_key)
    if not isinstance(name, str) or name.lower() not in _ROLE_NAMES:
        known = ", ".join(sorted(_ROLE_NAMES))
        raise WrongTurn(f"turn {number} has '{role_key}' {name!r}; known are {known}")
    role, content = _ROLE_NAMES[name.lower()], turn.get(content_key)
    if name.lower() == "function_call":
        return {"role": role, "content": "", "tool_calls": _calls(content, number)}
    calls = turn.get("tool_calls") or turn.get("function_call")  # the latter is OpenAI's old name
    message: Message = {"role": role, "content": _content(content, content_key, number, calls)}
    if calls:
        if role != "assistant":
            raise WrongTurn(f"turn {number} calls tools, but its '{role_key}' is {name!r}")
        message["tool_calls"] = _calls(calls, number)
    if role == "tool":
        message |= {key: turn[key] for key in ("name", "tool_call_id") if turn.get(key)}
    return message


def _content(content: Any, key: str, number: int, calls: Any) -> str:
    if content is None and calls:
        return ""
    if isinstance(content, list):
        return "".join(_part(part, number) for part in content)
    if not isinstance(content, str):
        raise WrongTurn(f"turn {number} has no text in '{key}'")
    return content


def _part(part: Any, number: int) -> str:
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    raise WrongTurn(f"turn {number} holds a part of type {kind!r}: this version trains on text")


def _calls(value: Any, number: int) -> list[Message]:
    value = _parsed(value)
    calls = [value] if isinstance(value, dict) else value
    if not isinstance(calls, list) or not calls:
        raise WrongTurn(
            f"turn {number} calls tools, but the calls are not JSON objects with a 'name'"
        )
    return [_call(call, number) for call in calls]


def _call(call: Any, number: int) -> Message:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise WrongTurn(f"turn {number} calls a tool without a 'name'")
    # OpenAI writes the arguments as JSON text; templates want the object.
    arguments = _parsed(function.get("arguments") or {})
    if not isinstance(arguments, dict):
        raise WrongTurn(
            f"turn {number} calls {function['name']} with 'arguments' that are not an object"
        )
    read = {
        "type": "function",
        "function": {"name": function["name"], "arguments": arguments},
    }
    return {"id": call["id"], **read} if isinstance(call.get("id"), str) else read


def read_tools(value: Any) -> list[dict[str, Any]]:
    """The tools of a row: a list of JSON schemas, or JSON text of one; none is an empty list.

    Raises:
        WrongTurn: it is something else.
    """
    if value is None or value == "":
        return []
    tools = _parsed(value)
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise WrongTurn("'tools' is not a list of objects")
    return tools


def fault(messages: tuple[Message, ...]) -> str | None:
    """Why these messages cannot be trained on, or None."""
    spoken = [m for m in messages if m["role"] != "system"]
    roles = [m["role"] for m in spoken]
    if any(m["role"] == "system" for m in messages[1:]):
        return "a system message comes after the first turn"
    if "assistant" not in roles:
        return "there is no assistant turn to train on"
    if roles[-1] != "assistant":
        return f"the last turn is {_WHOSE[roles[-1]]}: there is no answer to it"
    if roles[0] != "user":
        return f"the first turn is {_WHOSE[roles[0]]}: it answers nothing"
    for number, (before, after) in enumerate(itertools.pairwise(spoken), start=2):
        reason = _disorder(before, after, number)
        if reason is not None:
            return reason
    for message in spoken:
        empty = not (message["content"] + message.get("input", "")).strip()
        if empty and message["role"] == "assistant" and not message.get("tool_calls"):
            return "an answer is empty"
        if empty and message["role"] == "user":
            return "a question is empty"
    return None


def _disorder(before: Message, after: Message, number: int) -> str | None:
    """Why turn ``number`` cannot follow the one before it, or None."""
    first, second = before["role"], after["role"]
    if second == "tool" and first != "tool" and not before.get("tool_calls"):
        return f"turn {number} is a tool's answer, but turn {number - 1} calls no tool"
    if first == second != "tool":
        return f"turns {number - 1} and {number} are both of role {first}"
    if before.get("tool_calls") and second == "user":
        return f"turn {number - 1} calls a tool, but turn {number} is not its answer"
    if first == "tool" and second == "user":
        return f"turn {number - 1} is a tool's answer, but no assistant turn follows it"
    return None
