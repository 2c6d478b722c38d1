"""Does a chat template show all of a row? A stand-in for each part must be seen."""

from typing import Any

from transformers import PreTrainedTokenizerBase

from luthier.data.facts import once
from luthier.data.template import SENTINEL, Messages, TemplateRejects, render

_STAND_IN = SENTINEL.format("part")
_NAMES = {"system": "system prompt", "user": "question", "tool": "tool's answer"}


def changed(messages: Messages, index: int, **fields: Any) -> Messages:
    """A copy in which one message has other fields; a field of None is taken away."""
    new = {**messages[index], **fields}
    kept = {key: value for key, value in new.items() if value is not None}
    return (*messages[:index], kept, *messages[index + 1 :])


def check_shown(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> None:
    """Raise unless the template shows the system prompt, each question, and all that has to do with tools.

    What a template omits depends on the roles and fields of a row, not on its words: rows of one
    shape are looked at once.

    Raises:
        TemplateRejects: it omits something; the message says what, and of which turn.
    """
    shape = tuple(
        (m["role"], len(m.get("tool_calls", ())), bool(m.get("tools")), "reasoning_content" in m)
        for m in messages
    )
    omitted = once(tokenizer, ("omitted", shape), lambda known: _omitted(known, messages))
    if omitted:
        raise TemplateRejects(f"the chat template omits {omitted}")


def _omitted(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> str:
    """What is not shown, in words; empty where all is."""
    asked = messages[:-1]
    prompt = render(tokenizer, asked, add_generation_prompt=True)
    if messages[0].get("tools"):
        without = render(tokenizer, changed(asked, 0, tools=None), add_generation_prompt=True)
        if without == prompt:
            return "the tools that may be called"
    for index, message in enumerate(messages):
        place = f"of turn {index + 1}"
        calls = message.get("tool_calls")
        if calls:
            stand_ins = [
                {**call, "function": {"name": _STAND_IN, "arguments": {_STAND_IN: _STAND_IN}}}
                for call in calls
            ]
            probe = changed(messages, index, tool_calls=stand_ins)
            text = render(tokenizer, probe, add_generation_prompt=False)
            if text.count(_STAND_IN) < 3 * len(calls):
                return f"the tool call {place}"
        elif message["role"] != "assistant":
            probe = changed(asked, index, content=_STAND_IN)
            if _STAND_IN not in render(tokenizer, probe, add_generation_prompt=True):
                return f"the {_NAMES[message['role']]} {place}".removesuffix(" of turn 1")
    return ""
