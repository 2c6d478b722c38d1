"""The part of Go's text/template that our Modelfiles use, to see what Ollama would make of them."""

import re
from typing import Any

_ACTION = re.compile(r"\{\{-?\s*(.*?)\s*-?\}\}", re.S)
_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"')


def execute(template: str, messages: list[dict[str, Any]]) -> str:
    """The text of ``template`` over ``messages``, as Ollama gives them: .System and .Messages.

    All our text is in strings and every action trims around it, so what stands between is nothing.
    """
    assert _ACTION.sub("", template).strip() == ""
    actions = [match[1] for match in _ACTION.finditer(template)]
    system = next((m["content"] for m in messages if m["role"] == "system"), "")
    pieces: list[str] = []
    end = _run(actions, 0, {"system": system, "messages": messages}, pieces, True)
    assert end == len(actions)
    return "".join(pieces)


def _run(actions: list[str], at: int, scope: dict[str, Any], out: list[str], live: bool) -> int:
    """Run until the `end` or `else` that closes this block; where it stands."""
    while at < len(actions):
        action = actions[at]
        if action == "end" or action.startswith("else"):
            return at
        if action.startswith("range"):
            body = at + 1
            for index, message in enumerate(scope["messages"]):
                at = _run(actions, body, {**scope, "i": index, "m": message}, out, live)
            assert actions[at] == "end"
        elif action.startswith("if "):
            taken = not live
            condition: str | None = action[3:]
            while True:
                here = not taken and (condition is None or _holds(condition, scope))
                at = _run(actions, at + 1, scope, out, live and here)
                taken = taken or here
                if actions[at] == "end":
                    break
                condition = actions[at].removeprefix("else").strip().removeprefix("if ") or None
        elif action.startswith("$last :="):
            scope["last"] = scope["i"] == len(scope["messages"]) - 1
        elif live:
            out.append(_text(action, scope))
        at += 1
    return at


def _holds(condition: str, scope: dict[str, Any]) -> bool:
    if match := re.fullmatch(r'eq \.Role "(\w+)"', condition):
        return bool(scope["m"]["role"] == match[1])
    return {
        "not .System": lambda: not scope["system"],
        "eq $i 0": lambda: scope["i"] == 0,
        "not $last": lambda: not scope["last"],
        'and $last (ne .Role "assistant")': lambda: (
            scope["last"] and scope["m"]["role"] != "assistant"
        ),
    }[condition]()


def _text(action: str, scope: dict[str, Any]) -> str:
    if action == ".Content":
        return str(scope["m"]["content"])
    match = _STRING.fullmatch(action)
    assert match, action
    escapes = {"n": "\n", "r": "\r", "t": "\t"}
    return re.sub(r"\\(.)", lambda m: escapes.get(m[1], m[1]), match[1], flags=re.S)
