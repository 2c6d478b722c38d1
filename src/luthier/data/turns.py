"""Lists of turns, as OpenAI, ShareGPT and their kin write them, to messages."""

import itertools
import json
import re
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

# What a model thought before it answered: DeepSeek's and Qwen's name, gpt-oss's, OpenRouter's.
_THOUGHTS = ("reasoning_content", "thinking", "reasoning")

# Whether an answer counts in the loss: OpenAI's `weight`, Axolotl's `training`, and their kin.
_FLAGS = ("weight", "train", "training", "trainable", "loss", "loss_weight")

_WHOSE = {"user": "the user's", "assistant": "the assistant's", "tool": "a tool's"}


class WrongTurn(Exception):
    """What is wrong with a row, without its place."""


def read_turns(turns: Any) -> tuple[Message, ...]:
    """Messages of a list of turns in either spelling, role/content or from/value.

    Raises:
        WrongTurn: it is not such a list, or a turn holds something else than text and tool calls.
    """
    turns = parsed(turns)
    if not isinstance(turns, list) or not turns:
        raise WrongTurn("the conversation is not a list of turns")
    messages = [_turn(turn, number) for number, turn in enumerate(turns, start=1)]
    return tuple(_calls_read(messages))


def parsed(value: Any) -> Any:
    """What JSON text of a list or object says, as CSV and Parquet hold it; all else as it is."""
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
    turns = parsed(value)
    listed = isinstance(turns, list) and bool(turns)
    if listed and all(isinstance(turn, dict) and {"role", "from"} & turn.keys() for turn in turns):
        return list(turns)
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
    # A null says that there is nothing; Parquet writes it into every turn without the field.
    rest = {
        key: value
        for key, value in turn.items()
        if key not in (role_key, content_key) and value is not None
    }
    message: Message
    if name.lower() == "function_call":
        message = {"role": role, "content": "", "tool_calls": _calls(content, number)}
    else:
        calls = rest.pop("tool_calls", None) or rest.pop("function_call", None)  # OpenAI's old name
        rest.pop("function_call", None)
        text, parts = _content(content, content_key, number, role, calls)
        message = {"role": role, "content": text}
        if calls:
            if role != "assistant":
                raise WrongTurn(f"turn {number} calls tools, but its '{role_key}' is {name!r}")
            message["tool_calls"] = _calls(calls, number)
        if parts:
            rest["reasoning_content"] = parts
    if role == "tool":
        message |= {key: rest.pop(key) for key in ("name", "tool_call_id") if rest.get(key)}
    if role == "assistant":
        message |= _reasoning(rest, number)
    if _excluded(rest, number, role):
        message["train"] = False
    if "train_detail" in rest:
        raise WrongTurn(
            f"turn {number} has 'train_detail', which excludes parts of an answer: this version "
            'trains on whole answers; split the turn, or exclude all of it with "train": false'
        )
    # Empty lists (`tool_calls: []`) and texts say no more than their absence.
    unused = {key: value for key, value in rest.items() if value not in ("", [], {})}
    return {**message, "unused": unused} if unused else message


def _reasoning(rest: dict[str, Any], number: int) -> Message:
    """``reasoning_content`` out of the fields of a turn, or nothing."""
    texts = {rest.pop(key) for key in _THOUGHTS if isinstance(rest.get(key), str)}
    wrong = next((key for key in _THOUGHTS if key in rest), None)
    if wrong is not None:
        raise WrongTurn(f"turn {number} has a '{wrong}' that is not text")
    texts.discard("")
    if len(texts) > 1:
        raise WrongTurn(f"turn {number} tells its reasoning twice, in different words")
    return {"reasoning_content": texts.pop()} if texts else {}


def _excluded(rest: dict[str, Any], number: int, role: str) -> bool:
    """Whether a flag of the turn keeps it out of the loss; takes the flags out of ``rest``."""
    flags = {key: rest[key] for key in _FLAGS if key in rest}
    if role != "assistant":  # never in the loss; a flag that wants it there is told as unused
        for key, value in flags.items():
            if value in (0, False):
                rest.pop(key)
        return False
    for key, value in flags.items():
        if not isinstance(value, bool | int | float) or value not in (0, 1):
            raise WrongTurn(
                f"turn {number} has '{key}' {value!r}: an answer counts in the loss (1, true) or "
                "does not (0, false); parts of a weight are not supported"
            )
        rest.pop(key)
    if len({bool(value) for value in flags.values()}) > 1:
        raise WrongTurn(f"turn {number} has flags that disagree: {flags}")
    return bool(flags) and not any(flags.values())


def _content(content: Any, key: str, number: int, role: str, calls: Any) -> tuple[str, str]:
    """The text of a turn, and the reasoning that stands among its parts."""
    if content is None and calls:
        return "", ""
    if isinstance(content, list):
        parts = [_part(part, number) for part in content]
        return tuple(  # type: ignore[return-value]
            "".join(text for kind, text in parts if kind == wanted)
            for wanted in ("text", "thought")
        )
    if role == "tool" and isinstance(content, dict):  # a tool's answer as an object
        return json.dumps(content, ensure_ascii=False), ""
    if not isinstance(content, str):
        raise WrongTurn(f"turn {number} has no text in '{key}'")
    return content, ""


_PART_KINDS = {"text": "text", "thinking": "thought", "reasoning": "thought"}


def _part(part: Any, number: int) -> tuple[str, str]:
    if isinstance(part, str):
        return "text", part
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    if isinstance(part, dict) and kind in _PART_KINDS:
        names = ("text", "value", "content", "thinking", "reasoning")
        text = next((part[name] for name in names if isinstance(part.get(name), str)), None)
        if text is not None:
            return _PART_KINDS[str(kind)], text
    raise WrongTurn(f"turn {number} holds a part of type {kind!r}: this version trains on text")


_CALL = re.compile(r"<tool_call>\s*(\{.*?\})\s*</tool_call>", re.DOTALL)
_ANSWER = re.compile(r"\s*<tool_response>\s*(.*?)\s*</tool_response>\s*", re.DOTALL)


def _calls_read(messages: list[Message]) -> list[Message]:
    """Calls and answers that Hermes' data writes as text between tags, where a tool answers."""
    read = []
    for number, message in enumerate(messages, start=1):
        after = messages[number]["role"] if number < len(messages) else ""
        text = message["content"]
        if message["role"] == "tool" and (answer := _ANSWER.fullmatch(text)):
            message = {**message, "content": answer[1]}
        elif message["role"] == "assistant" and after == "tool" and "tool_calls" not in message:
            calls = [_calls(call, number)[0] for call in _CALL.findall(text)]
            if calls:
                message = {**message, "content": _CALL.sub("", text).strip(), "tool_calls": calls}
        read.append(message)
    return read


def _calls(value: Any, number: int) -> list[Message]:
    value = parsed(value)
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
    arguments = parsed(function.get("arguments") or {})
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
    tools = parsed(value)
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
    answers = [m for m in spoken if m["role"] == "assistant"]
    if not any(m.get("train", True) for m in answers):
        return "every answer is excluded from the loss (weight 0, or train false)"
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
