"""Chat templates: which one a run uses, and the text that it makes of messages.

What is trained is the template's own rendering, and the same template answers at inference.
``spans.py`` says which part of it is learned.
"""

import datetime
import hashlib
import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from jinja2 import Template
from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase
from transformers.utils import chat_template_utils

from luthier.data.bounded import TooMuch, bounded
from luthier.data.conversation import Message, flatten
from luthier.data.facts import once
from luthier.data.looks import Looks, looks_of
from luthier.data.pins import pin
from luthier.data.skeleton import Skeleton, stand_in
from luthier.errors import UserError
from luthier.files import user_path
from luthier.recipe import DataGroup

log = logging.getLogger(__name__)

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

# Stands in for a text to find where the template puts it; a string that no data contains.
SENTINEL = "\u2063luthier\u2063{}\u2063"

Messages = tuple[Message, ...]

_INLINE = re.compile(r"\s*<think>(.*?)</think>(.*)", re.DOTALL)


class TemplateRejects(Exception):
    """The template refuses these messages (a system role it does not know, say)."""


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


def set_template(
    tokenizer: PreTrainedTokenizerBase, data: DataGroup, day: datetime.date | None = None
) -> str:
    """``pin_template`` for a recipe.

    Args:
        day: of the run's start; None is today, or the recipe's ``data.template_date``.
    """
    if day is None and isinstance(data.template_date, datetime.date):
        day = data.template_date
    return pin_template(tokenizer, data.template, data.template_kwargs, day)


def pin_template(
    tokenizer: PreTrainedTokenizerBase,
    choice: str,
    switches: Mapping[str, Any],
    day: datetime.date | None = None,
) -> str:
    """``choose_template``, the switches and the day (None: today) written into the template.

    Raises:
        UserError: as ``choose_template``, or the template does not read a switch.
    """
    name = choose_template(tokenizer, choice)
    tokenizer.chat_template = pin(
        tokenizer.chat_template, switches, day if day is not None else datetime.date.today()
    )
    return name


_CHAT_TOKENS = re.compile(
    r"<\|?(im_start|start_header_id|start|start_of_turn|user|assistant|message|end_of_turn|channel)\|?>"
    r"|\[INST\]",
    re.IGNORECASE,
)


def chat_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Tokens of the tokenizer that only a chat template would write."""
    return sorted(token for token in special_texts(tokenizer) if _CHAT_TOKENS.fullmatch(token))


def _bos(tokenizer: PreTrainedTokenizerBase) -> str:
    """``{{ bos_token }}`` for a tokenizer that begins every text with it, else nothing."""
    begins = tokenizer("a").input_ids[0] == tokenizer.bos_token_id
    return "{{ bos_token }}" if begins and tokenizer.bos_token_id is not None else ""


def render(
    tokenizer: PreTrainedTokenizerBase, messages: Messages, *, add_generation_prompt: bool
) -> str:
    """The text of ``messages``; the template runs in a sandbox, within bounds of time and memory.

    Templates differ in what they call things: a thought is given under each name that they know,
    a thought that stands in the content as a field where the template has a place for it, and
    the arguments and ids of calls in the form that the template takes.

    Raises:
        TemplateRejects: the template raised an error over them.
    """
    turns = _flat(tokenizer, messages)
    tools = messages[0].get("tools") if messages else None
    plain = _plain_for(tokenizer, messages, turns)
    if plain is not None:
        return plain.render(turns, add_generation_prompt)
    if shows_reasoning(tokenizer):
        turns = [_with_field(turn) for turn in turns]
    turns = [_under_each_name(turn) for turn in turns]
    if any(turn.get("tool_calls") for turn in turns):
        turns = _call_form(tokenizer)(turns)
    return _apply(tokenizer, turns, tools, add_generation_prompt)


def content_place(
    tokenizer: PreTrainedTokenizerBase, messages: Messages, index: int, size: int
) -> tuple[int, int] | None:
    """Where the rendering of ``messages``, ``size`` characters, holds the content of turn ``index``.

    None where the template does more than insert contents, so that only renderings can tell.
    """
    turns = _flat(tokenizer, messages)
    plain = _plain_for(tokenizer, messages, turns)
    return plain.place(turns, index, size) if plain is not None else None


def _flat(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> list[Message]:
    # Only a template that knows of Alpaca's input gets it apart from the content.
    return flatten(messages, keep_input="message.input" in (tokenizer.chat_template or ""))


def _plain_for(
    tokenizer: PreTrainedTokenizerBase, messages: Messages, turns: list[Message]
) -> "_Plain | None":
    if not turns or messages[0].get("tools") is not None:
        return None
    return _plain(tokenizer) if all(map(_nothing_but_text, turns)) else None


def _nothing_but_text(turn: Message) -> bool:
    """Whether ``turn`` is a role and a text that no thought is in, and Alpaca's input at most."""
    return (
        turn.keys() <= _TEXTS
        and all(type(value) is str for value in turn.values())
        and "<think>" not in turn["content"]
    )


_TEXTS = frozenset(["role", "content", "input"])
_CHECKED = (
    32  # rows of a sequence of roles that are rendered in full, too, before skeletons are trusted
)


@dataclass(frozen=True)
class _Plain:
    """A compiled template and what Transformers would hand it beside the turns."""

    compiled: Template
    tokens: dict[str, str]
    looks: Looks | None
    skeletons: dict[tuple[object, ...], Skeleton | None] = field(default_factory=dict)
    checked: Counter[tuple[object, ...]] = field(default_factory=Counter)

    def render(self, turns: list[Message], ask: bool) -> str:
        skeleton = self._skeleton(turns, ask)
        if skeleton is None:
            return self._run(turns, ask)
        filled = skeleton.fill([turn["content"] for turn in turns])
        shape = _shape(turns, ask)
        if self.checked[shape] == _CHECKED:
            return filled
        self.checked[shape] += 1
        whole = self._run(turns, ask)
        if whole != filled:
            log.warning(
                "the template does more with contents than was read in it; it is run in full"
            )
            self.skeletons[shape] = None
        return whole

    def place(self, turns: list[Message], index: int, size: int) -> tuple[int, int] | None:
        """Where the content of turn ``index`` is; None where the roles alone do not say it."""
        skeleton = self._skeleton(turns, False)
        if skeleton is None:
            return None
        return skeleton.place([turn["content"] for turn in turns], index, size)

    def _skeleton(self, turns: list[Message], ask: bool) -> Skeleton | None:
        if self.looks is None or not all(self.looks.pass_over(turn["content"]) for turn in turns):
            return None
        shape = _shape(turns, ask)
        if shape not in self.skeletons:
            stand_ins = [{**turn, "content": stand_in(index)} for index, turn in enumerate(turns)]
            passed = all(self.looks.pass_over(turn["content"]) for turn in stand_ins)
            # An error is that of these turns too.
            self.skeletons[shape] = Skeleton.of(self._run(stand_ins, ask)) if passed else None
        return self.skeletons[shape]

    def _run(self, turns: list[Message], ask: bool) -> str:
        given: dict[str, Any] = {"tools": None, "documents": None, **self.tokens}
        return str(
            _guarded(
                lambda: self.compiled.render(messages=turns, add_generation_prompt=ask, **given)
            )
        )


def _shape(turns: list[Message], ask: bool) -> tuple[object, ...]:
    return (ask, *(turn["role"] for turn in turns))


def _plain(tokenizer: PreTrainedTokenizerBase) -> _Plain | None:
    """For turns of text alone, of which Transformers would only make copies before it renders them.

    None for a tokenizer that renders in a way of its own.
    """
    return once(tokenizer, "plain", _compile)


def _compile(tokenizer: PreTrainedTokenizerBase) -> _Plain | None:
    template = tokenizer.chat_template
    usual = type(tokenizer).apply_chat_template is PreTrainedTokenizerBase.apply_chat_template
    if not usual or not isinstance(template, str):
        return None
    # What a template computes of constants alone it computes here.
    compiled: Template = _guarded(lambda: chat_template_utils._compile_jinja_template(template))
    tokens = dict(tokenizer.special_tokens_map)
    given = {*tokens, *compiled.environment.globals}
    return _Plain(compiled, tokens, looks_of(compiled.environment.parse(template), given))


def _apply(tokenizer: PreTrainedTokenizerBase, turns: list[Message], tools: Any, ask: bool) -> str:
    if any(turn["content"] is None for turn in turns):
        return str(_guarded(lambda: _render_nulls(tokenizer, turns, tools, ask)))
    text = _guarded(
        lambda: tokenizer.apply_chat_template(
            turns, tools=tools, tokenize=False, add_generation_prompt=ask
        )
    )
    assert isinstance(text, str)
    return text


def _guarded(write: Callable[[], Any]) -> Any:
    try:
        with bounded():
            return write()
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


def _render_nulls(
    tokenizer: PreTrainedTokenizerBase, turns: list[Message], tools: Any, ask: bool
) -> str:
    """As ``apply_chat_template``, which takes nulls out of turns, but with those that are there."""
    names: dict[str, Any] = dict(tokenizer.special_tokens_map)
    made: Any = chat_template_utils.render_jinja_template(
        conversations=[turns],
        tools=tools,
        chat_template=tokenizer.get_chat_template(None, tools),
        add_generation_prompt=ask,
        **names,
    )
    return str(made[0][0])  # and where the answers are


_Form = Callable[[list[Message]], list[Message]]


def _as_they_are(turns: list[Message]) -> list[Message]:
    return turns


def _arguments_as_text(turns: list[Message]) -> list[Message]:
    """DeepSeek's template joins them to texts."""
    return [
        {
            **turn,
            "tool_calls": [
                {**call, "function": {**call["function"], "arguments": _json(call)}}
                for call in turn["tool_calls"]
            ],
        }
        if turn.get("tool_calls")
        else turn
        for turn in turns
    ]


def _null_beside_calls(turns: list[Message]) -> list[Message]:
    """DeepSeek V3's template writes calls only where there is no content at all: not an empty one."""
    return [
        {**turn, "content": None} if turn.get("tool_calls") and not turn["content"] else turn
        for turn in _arguments_as_text(turns)
    ]


def _json(call: dict[str, Any]) -> str:
    return json.dumps(call["function"]["arguments"], ensure_ascii=False)


def _ids_of_nine(turns: list[Message]) -> list[Message]:
    """Mistral's template takes ids of nine letters and digits alone; the same id makes the same one."""
    made, waiting, place = [], [], 0
    for turn in turns:
        calls = []
        for call in turn.get("tool_calls", ()):
            place += 1
            calls.append({**call, "id": _nine(call.get("id") or f"call {place}")})
        if calls:
            waiting = [call["id"] for call in calls]
            turn = {**turn, "tool_calls": calls}
        if turn["role"] == "tool":
            told = turn.get("tool_call_id")
            in_turn = waiting.pop(0) if waiting else _nine("none")
            turn = {**turn, "tool_call_id": _nine(told) if told else in_turn}
        made.append(turn)
    return made


def _nine(name: str) -> str:
    if re.fullmatch("[A-Za-z0-9]{9}", name):
        return name
    return hashlib.sha256(name.encode()).hexdigest()[:9]


_CALL_FORMS: tuple[_Form, ...] = (
    _as_they_are,
    _arguments_as_text,
    _null_beside_calls,
    _ids_of_nine,
)


def _call_form(tokenizer: PreTrainedTokenizerBase) -> _Form:
    """The first form of calls that the template shows whole; as they are where it shows none."""
    return once(tokenizer, "call form", _find_call_form)


def _find_call_form(tokenizer: PreTrainedTokenizerBase) -> _Form:
    name, argument = SENTINEL.format("name"), SENTINEL.format("argument")
    function = {"name": name, "arguments": {"x": argument}}
    call = {"type": "function", "id": "call_1", "function": function}
    asked: list[Message] = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
    ]
    answered = [*asked, {"role": "tool", "content": "c"}, {"role": "assistant", "content": "d"}]
    for form in _CALL_FORMS:
        if any(_shows(tokenizer, form(turns), name, argument) for turns in (answered, asked)):
            return form
    return _as_they_are


def _shows(tokenizer: PreTrainedTokenizerBase, turns: list[Message], *texts: str) -> bool:
    try:
        text = _apply(tokenizer, turns, None, False)
    except TemplateRejects:
        return False
    return all(each in text for each in texts)


def split_thought(content: str) -> tuple[str, str] | None:
    """Thought and answer of a content that begins with ``<think>…</think>``; None where none does."""
    found = _INLINE.fullmatch(content)
    return (found[1].strip("\n"), found[2].lstrip("\n")) if found else None


def _with_field(turn: Message) -> Message:
    if turn["role"] != "assistant" or "reasoning_content" in turn:
        return turn
    split = split_thought(turn["content"])
    if split is None:
        return turn
    thought, content = split
    return {**turn, "reasoning_content": thought, "content": content}


def _under_each_name(turn: Message) -> Message:
    thought = turn.get("reasoning_content")
    return {**turn, "thinking": thought, "reasoning": thought} if thought else turn


def shows_reasoning(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the template writes the reasoning of the last answer that a field tells."""
    return once(tokenizer, "shows reasoning", _find_reasoning)


def _find_reasoning(tokenizer: PreTrainedTokenizerBase) -> bool:
    thought = SENTINEL.format("thought")
    answer = {"role": "assistant", "content": "b", "reasoning_content": thought}
    turns = [{"role": "user", "content": "a"}, _under_each_name(answer)]
    return _shows(tokenizer, turns, thought)


def special_texts(tokenizer: PreTrainedTokenizerBase) -> frozenset[str]:
    """Texts of the tokens that are no text."""
    return once(tokenizer, "special texts", _find_special_texts)


def _find_special_texts(tokenizer: PreTrainedTokenizerBase) -> frozenset[str]:
    # Templates end turns with tokens that are often added but not flagged as special.
    return frozenset(map(str, [*tokenizer.get_added_vocab(), *tokenizer.all_special_tokens]))
