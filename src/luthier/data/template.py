"""Chat templates: which one a run uses, and which part of its rendering is learned.

What is trained is the template's own rendering, and the same template answers at inference.
"""

from dataclasses import dataclass
from typing import Any

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from luthier.data.bounded import TooMuch, bounded
from luthier.data.conversation import Message, flatten
from luthier.errors import UserError
from luthier.files import user_path

# The prompt of Stanford Alpaca (Taori et al. 2023), multi-turn by repetition.
ALPACA_TEMPLATE = """\
{%- for message in messages -%}
{%- if message.role == 'system' -%}
{{ message.content + '\\n\\n' }}
{%- elif message.role == 'user' -%}
{%- if loop.first and message.input -%}
{{ 'Below is an instruction that describes a task, paired with an input that provides further \
context. Write a response that appropriately completes the request.\\n\\n' }}
{%- elif loop.first -%}
{{ 'Below is an instruction that describes a task. Write a response that appropriately completes \
the request.\\n\\n' }}
{%- endif -%}
{{ '### Instruction:\\n' + message.content + '\\n\\n' }}
{%- if message.input -%}
{{ '### Input:\\n' + message.input + '\\n\\n' }}
{%- endif -%}
{{ '### Response:\\n' }}
{%- else -%}
{{ message.content + eos_token + ('' if loop.last else '\\n\\n') }}
{%- endif -%}
{%- endfor -%}"""

# Stands in for an answer to find where the template puts it; a string no data holds.
_SENTINEL = "\u2063luthier\u2063answer\u2063"

Messages = tuple[Message, ...]


class TemplateRejects(Exception):
    """The template refuses these messages (a system role it does not know, say)."""


@dataclass(frozen=True)
class Rendering:
    """``text`` as the model sees it; ``spans`` are the (start, end) characters to learn."""

    text: str
    spans: tuple[tuple[int, int], ...]


def choose_template(tokenizer: PreTrainedTokenizerBase, choice: str) -> str:
    """Set ``tokenizer.chat_template`` by the recipe's ``data.template`` and name the choice.

    ``auto`` takes the model's own, or Alpaca's for a base model that has none.

    Raises:
        UserError: the model has no template of its own, or there is no file of that name.
    """
    own = tokenizer.chat_template
    if isinstance(own, dict):  # several, by name: the conversation one is 'default'
        own = tokenizer.chat_template = own.get("default")
    if choice == "auto":
        choice = "model" if own else "alpaca"
    if choice == "model":
        if not own:
            raise UserError(
                "data.template is 'model' but this model has no chat template; use 'alpaca', "
                "or the path of a Jinja file"
            )
        return "model"
    if choice == "alpaca":
        tokenizer.chat_template = _bos(tokenizer) + ALPACA_TEMPLATE
        return "alpaca"
    path = user_path(choice)
    if not path.is_file():
        raise UserError(f"data.template '{choice}' is not auto, model, alpaca or an existing file")
    tokenizer.chat_template = path.read_text(encoding="utf-8")
    return choice


def _bos(tokenizer: PreTrainedTokenizerBase) -> str:
    """``{{ bos_token }}`` for a tokenizer that begins every text with it, else nothing."""
    begins = tokenizer("a").input_ids[0] == tokenizer.bos_token_id
    return "{{ bos_token }}" if begins and tokenizer.bos_token_id is not None else ""


def render(
    tokenizer: PreTrainedTokenizerBase, messages: Messages, *, add_generation_prompt: bool
) -> str:
    """The text of ``messages``; the template runs in a sandbox, within bounds of time and memory.

    Raises:
        TemplateRejects: the template raised an error over them.
    """
    # Only a template that knows of Alpaca's input gets it apart from the content.
    own_input = "message.input" in (tokenizer.chat_template or "")
    turns = [dict(m) for m in messages] if own_input else flatten(messages)
    tools = messages[0].get("tools") if messages else None
    try:
        with bounded():
            text = tokenizer.apply_chat_template(
                turns, tools=tools, tokenize=False, add_generation_prompt=add_generation_prompt
            )
    except MemoryError:
        raise TemplateRejects("the chat template needs too much memory") from None
    except (
        TemplateError,
        SyntaxError,
        TypeError,
        ValueError,
        LookupError,
        ArithmeticError,
        TooMuch,
    ) as error:
        raise TemplateRejects(f"the chat template rejects it: {error}") from None
    assert isinstance(text, str)
    return text


def render_with_spans(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> Rendering:
    """Render a conversation and find, in that rendering, what the model has to write itself.

    For each assistant turn: from where the prompt for it ends (the rendering of the turns before,
    with the generation prompt) to the end-of-turn token, that token included; tool calls are part
    of the turn, the tools' answers are not. The end is found by rendering once more with a stand-in
    answer: what follows it is the same text in both.

    Raises:
        TemplateRejects: the template refuses the messages, does not show an answer verbatim, or
            omits a tool, a call or a tool's answer.
    """
    text = render(tokenizer, messages, add_generation_prompt=False)
    if any(m["role"] == "tool" or m.get("tool_calls") or m.get("tools") for m in messages):
        _check_tools_shown(tokenizer, messages, text)
    spans = []
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt = render(tokenizer, messages[:index], add_generation_prompt=True)
        if message.get("tool_calls"):
            spans.append(_call_span(tokenizer, messages, index, text, prompt))
            continue
        content_start, content_end = _content_span(tokenizer, messages, index, text)
        start = content_start
        # Some templates write turns of the past otherwise than the last: then the content is all
        # that is sure. A prompt that reaches into the content belongs to another rendering.
        if text.startswith(prompt) and len(prompt) <= content_start:
            start = len(prompt)
        spans.append((start, _turn_end(tokenizer, text, content_end)))
    return Rendering(text, tuple(spans))


def _changed(messages: Messages, index: int, **fields: Any) -> Messages:
    """A copy in which one message has other fields; a field of None is taken away."""
    changed = {**messages[index], **fields}
    kept = {key: value for key, value in changed.items() if value is not None}
    return (*messages[:index], kept, *messages[index + 1 :])


def _content_span(
    tokenizer: PreTrainedTokenizerBase, messages: Messages, index: int, text: str
) -> tuple[int, int]:
    stand_in = _changed(messages, index, content=_SENTINEL)
    probe = render(tokenizer, stand_in, add_generation_prompt=False)
    start = probe.find(_SENTINEL)
    if start < 0:
        raise TemplateRejects(f"the chat template omits the answer of turn {index + 1}")
    after = len(probe) - start - len(_SENTINEL)
    end = len(text) - after
    same_around = text[:start] == probe[:start] and text[end:] == probe[len(probe) - after :]
    if end < start or not same_around:
        raise TemplateRejects(f"the chat template changes with the answer of turn {index + 1}")
    return start, end


def _call_span(
    tokenizer: PreTrainedTokenizerBase, messages: Messages, index: int, text: str, prompt: str
) -> tuple[int, int]:
    """What to learn of a turn that calls tools, ``prompt`` being what the model answers.

    The stand-in is a plain answer: the full turn is then what is between the prompt and what
    follows that answer. A template that refuses it (a tool's answer without a call) is asked for
    the turns up to the call, which must be what the full text begins with.
    """
    stand_in = _changed(messages, index, content=_SENTINEL, tool_calls=None)
    end = -1
    try:
        probe = render(tokenizer, stand_in, add_generation_prompt=False)
        after = probe.rpartition(_SENTINEL)[2]
        if _SENTINEL in probe and text.endswith(after):
            end = _turn_end(tokenizer, text, len(text) - len(after))
    except TemplateRejects:
        head = render(tokenizer, messages[: index + 1], add_generation_prompt=False).rstrip()
        if text.startswith(head) and head.endswith(tuple(_special_texts(tokenizer))):
            end = len(head)
    if not text.startswith(prompt) or end < len(prompt):
        raise TemplateRejects(
            f"the chat template does not write the tool call of turn {index + 1} as an answer"
        )
    if messages[index]["content"].strip() not in text[len(prompt) : end]:
        raise TemplateRejects(
            f"the chat template omits the text beside the tool call of turn {index + 1}"
        )
    return len(prompt), end


def _check_tools_shown(tokenizer: PreTrainedTokenizerBase, messages: Messages, text: str) -> None:
    """Raise unless the template shows what has to do with tools: a stand-in must be seen."""
    if messages[0].get("tools"):
        without = render(tokenizer, _changed(messages, 0, tools=None), add_generation_prompt=False)
        if without == text:
            raise TemplateRejects("the chat template omits the tools that may be called")
    for index, message in enumerate(messages):
        if message.get("tool_calls"):
            calls = [
                {**call, "function": {"name": _SENTINEL, "arguments": {_SENTINEL: _SENTINEL}}}
                for call in message["tool_calls"]
            ]
            stand_in, wanted = _changed(messages, index, tool_calls=calls), 3 * len(calls)
        elif message["role"] == "tool":
            stand_in, wanted = _changed(messages, index, content=_SENTINEL), 1
        else:
            continue
        probe = render(tokenizer, stand_in, add_generation_prompt=False)
        if probe.count(_SENTINEL) < wanted:
            what = "tool's answer" if message["role"] == "tool" else "tool call"
            raise TemplateRejects(f"the chat template omits the {what} of turn {index + 1}")


def _turn_end(tokenizer: PreTrainedTokenizerBase, text: str, content_end: int) -> int:
    """Where the end-of-turn token right after an answer ends (white space may precede it)."""
    position = content_end
    while position < len(text) and text[position].isspace():
        position += 1
    # The longest first: one special token may begin with another.
    for token in sorted(_special_texts(tokenizer), key=len, reverse=True):
        if text.startswith(token, position):
            return position + len(token)
    return content_end


def _special_texts(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    # Templates end turns with tokens that are often added but not flagged as special.
    return {str(token) for token in tokenizer.get_added_vocab()} | set(tokenizer.all_special_tokens)


def stop_token_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens that end an answer: the end-of-text token and the template's end-of-turn token."""
    stops = {int(tokenizer.eos_token_id)}
    if tokenizer.chat_template:
        probe = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"})
        rendering = render_with_spans(tokenizer, probe)
        start, end = rendering.spans[-1]
        learned = tokenizer(rendering.text[start:end], add_special_tokens=False).input_ids
        added = set(tokenizer.get_added_vocab().values()) | set(tokenizer.all_special_ids)
        if learned and learned[-1] in added:
            stops.add(int(learned[-1]))
    return sorted(stops)
