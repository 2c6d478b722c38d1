"""Which part of a rendering is learned: every answer as the model has to write it at inference.

An answer is trained behind the prompt that inference puts before it: the turns before it, with the
generation prompt. Where the template writes the whole conversation so, it is one row. Where it
writes earlier turns otherwise than the last (leaves out their thoughts, moves the system prompt),
each answer is a row of its own.
"""

import itertools
import re
from dataclasses import dataclass
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from luthier.data.conversation import Message, learned
from luthier.data.facts import once
from luthier.data.shown import changed, check_shown
from luthier.data.template import (
    SENTINEL,
    Messages,
    TemplateRejects,
    content_place,
    render,
    special_texts,
    split_thought,
)

History = Literal["split", "as_is"]

_ANSWER = SENTINEL.format("answer")
_NO_THOUGHT = "\n</think>\n\n"  # closes a thought that the prompt has opened
_ENOUGH = 4  # characters in which a prompt and a rendering must agree before the answer
_LEAD = 12
_OPENED = re.compile(
    r"<think>\s*(</think>\s*)?$"
)  # a thought at the end of a prompt, or its beginning


@dataclass(frozen=True)
class Rendering:
    """``text`` as the model sees it; ``spans`` are the (start, end) characters to learn."""

    text: str
    spans: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Piece:
    """What inference puts before an answer, and the answer with what ends it."""

    prompt: str
    answer: str

    @property
    def text(self) -> str:
        return self.prompt + self.answer


def renderings(
    tokenizer: PreTrainedTokenizerBase, messages: Messages, history: History = "split"
) -> list[Rendering]:
    """Render a conversation and find, in that rendering, what the model has to write itself.

    For each learned answer: from where the prompt for it ends to the end-of-turn token, that token
    included; tool calls and reasoning are part of the turn, the tools' answers are not.

    Args:
        history: what to do where the template writes earlier turns otherwise than the last.
            ``split``: one rendering for each answer. ``as_is``: the one rendering of the whole
            conversation, of which earlier answers are learned as they stand there.

    Raises:
        TemplateRejects: the template refuses the messages, does not show an answer verbatim, or
            omits something of the row.
    """
    answers = learned(messages)
    if not answers:
        raise TemplateRejects("there is no answer to learn")
    check_shown(tokenizer, messages[: answers[-1] + 1])
    whole = render(tokenizer, messages, add_generation_prompt=False)
    pieces = [
        piece_of(tokenizer, messages, index, whole if index + 1 == len(messages) else None)
        for index in answers
    ]
    last = answers[-1] + 1 == len(messages)
    if last and not whole.startswith(pieces[-1].text):
        # The template closes an answer only where a turn follows it.
        closed = pieces[-1].text
        if closed.startswith(whole.rstrip()) and whole.startswith(pieces[-1].prompt):
            whole = closed
    if all(whole.startswith(piece.text) for piece in pieces):
        spans = tuple((len(piece.prompt), len(piece.text)) for piece in pieces)
        return [Rendering(whole, spans)]
    if history == "split":
        return [Rendering(piece.text, ((len(piece.prompt), len(piece.text)),)) for piece in pieces]
    return [Rendering(whole, answer_spans(tokenizer, messages, whole, answers))]


def answer_spans(
    tokenizer: PreTrainedTokenizerBase, messages: Messages, whole: str, answers: list[int]
) -> tuple[tuple[int, int], ...]:
    """Where the answers are in ``whole``, whatever the prompt of each would be."""
    spans = []
    for index in answers:
        prompt = render(tokenizer, messages[:index], add_generation_prompt=True)
        if messages[index].get("tool_calls"):
            piece = piece_of(tokenizer, messages, index)
            if not whole.startswith(piece.text):
                raise TemplateRejects(
                    f"the chat template writes the tool call of turn {index + 1} otherwise once "
                    "turns follow it; use data.history: split"
                )
            spans.append((len(piece.prompt), len(piece.text)))
            continue
        start, end = _content_span(tokenizer, messages, index, whole)
        # A prompt that reaches into the content belongs to another rendering.
        begin = len(prompt) if whole.startswith(prompt) and len(prompt) <= start else start
        spans.append((begin, end + len(_closing(tokenizer, whole[end:]))))
    return tuple(spans)


def piece_of(
    tokenizer: PreTrainedTokenizerBase, messages: Messages, index: int, full: str | None = None
) -> Piece:
    """The answer ``messages[index]`` behind the prompt that asks for it, as the last turn.

    ``full`` is the rendering up to and with the answer, where the caller has it.

    Raises:
        TemplateRejects: as ``renderings``.
    """
    head = messages[: index + 1]
    prompt = render(tokenizer, messages[:index], add_generation_prompt=True)
    if full is None:
        full = render(tokenizer, head, add_generation_prompt=False)
    if head[-1].get("tool_calls"):
        answer = _call(tokenizer, head, full, prompt)
    else:
        start, end = _content_span(tokenizer, head, index, full)
        ends = _closing(tokenizer, full[end:]) or _closing_before_a_turn(tokenizer)
        if full.startswith(prompt) and len(prompt) <= start:
            answer = full[len(prompt) : end] + ends
        else:
            lead = _after_the_prompt(prompt, full[:start], head[-1], index)
            answer = lead + full[start:end] + ends
    thought = _thought(head[-1])
    if thought and thought not in answer:
        if _OPENED.search(prompt):
            raise TemplateRejects(
                f"turn {index + 1} has reasoning, but the chat template asks for an answer without a "
                "thought (data.template_kwargs turns thinking off?); turn it on, or take the "
                "reasoning out of the row"
            )
        raise TemplateRejects(
            f"the chat template omits the reasoning of turn {index + 1}; write it into the content "
            "as <think>…</think> if the model is to learn it, or take it out of the row"
        )
    return Piece(prompt, answer)


def _thought(message: Message) -> str:
    thought = str(message.get("reasoning_content", "")).strip()
    inline = split_thought(message["content"])
    return thought or (inline[0].strip() if inline else "")


def _after_the_prompt(prompt: str, before: str, message: Message, index: int) -> str:
    """What comes between a prompt and the content where the rendering does not begin with the prompt.

    ``before`` is the rendering up to the content. The prompt may end in a thought that it opens
    (DeepSeek-R1), or has closed (EXAONE); the rest of it must be what ``before`` ends in too.
    """
    opened = _OPENED.search(prompt)
    base = prompt[: opened.start()] if opened else prompt
    shared = len(_common_suffix(base, before))
    lead = ""
    if shared < min(_ENOUGH, len(base)):
        at = before.rfind(base[-_LEAD:])
        if at < 0:
            raise TemplateRejects(
                f"the chat template writes turn {index + 1} otherwise than it asks for it, so that "
                "the model would learn to answer another prompt"
            )
        lead = before[at + len(base[-_LEAD:]) :]
    if opened is None:
        return lead
    if opened[1]:  # thinking is off: the prompt holds the empty thought already
        return ""
    return _thought(message) + _NO_THOUGHT


def _common_suffix(one: str, other: str) -> str:
    pairs = zip(reversed(one), reversed(other), strict=False)
    count = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
    return one[len(one) - count :]


def _content_span(
    tokenizer: PreTrainedTokenizerBase, messages: Messages, index: int, text: str
) -> tuple[int, int]:
    """Where the content of an answer is, found by a stand-in: the rest is the same in both."""
    known = content_place(tokenizer, messages, index, len(text))
    if known is not None:
        return known
    message = messages[index]
    thought = _thought(message)
    inline = thought and "reasoning_content" not in message
    stand_in = changed(messages, index, content=_ANSWER)
    probe = render(tokenizer, stand_in, add_generation_prompt=False)
    if inline:  # the thought stays with the answer where the template takes both apart
        apart = changed(messages, index, content=_ANSWER, reasoning_content=thought)
        written = render(tokenizer, apart, add_generation_prompt=False)
        if thought in written:
            probe = written
    start = probe.find(_ANSWER)
    if start < 0:
        raise TemplateRejects(f"the chat template omits the answer of turn {index + 1}")
    after = len(probe) - start - len(_ANSWER)
    end = len(text) - after
    same_around = text[:start] == probe[:start] and text[end:] == probe[len(probe) - after :]
    if end < start or not same_around:
        raise TemplateRejects(f"the chat template changes with the answer of turn {index + 1}")
    return start, end


def _call(tokenizer: PreTrainedTokenizerBase, head: Messages, full: str, prompt: str) -> str:
    """What to learn of a turn that calls tools, which ends ``head``."""
    index = len(head) - 1
    end = -1
    try:  # what follows a plain answer in the call's place follows the call
        stand_in = changed(head, index, content=_ANSWER, tool_calls=None)
        probe = render(tokenizer, stand_in, add_generation_prompt=False)
        after = probe.rpartition(_ANSWER)[2]
        if _ANSWER in probe and full.endswith(after) and _closing(tokenizer, after):
            end = len(full) - len(after) + len(_closing(tokenizer, after))
    except TemplateRejects:
        pass
    if end < 0 and full.rstrip().endswith(tuple(special_texts(tokenizer))):
        end = len(full.rstrip())
    if not full.startswith(prompt) or end < len(prompt):
        raise TemplateRejects(
            f"the chat template does not write the tool call of turn {index + 1} as an answer"
        )
    if head[-1]["content"].strip() not in full[len(prompt) : end]:
        raise TemplateRejects(
            f"the chat template omits the text beside the tool call of turn {index + 1}"
        )
    return full[len(prompt) : end]


def _closing(tokenizer: PreTrainedTokenizerBase, after: str) -> str:
    """The end-of-turn tokens right after an answer, with white space before the first."""
    ends = once(tokenizer, "ends", _find_ends)
    found = ends.match(after) if ends is not None else None
    return found[0] if found else ""


def _find_ends(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str] | None:
    # The longest first: one special token may begin with another.
    ends = "|".join(map(re.escape, sorted(special_texts(tokenizer), key=len, reverse=True)))
    return re.compile(rf"\s*(?:{ends})+") if ends else None


_EXCHANGE: tuple[Message, ...] = (
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": _ANSWER},
    {"role": "user", "content": "c"},
)


def _closing_before_a_turn(tokenizer: PreTrainedTokenizerBase) -> str:
    """What ends an answer that a turn follows, where the template leaves the last answer open (GLM)."""
    return once(tokenizer, "closing before a turn", _find_closing_before_a_turn)


def _find_closing_before_a_turn(tokenizer: PreTrainedTokenizerBase) -> str:
    try:
        text = render(tokenizer, _EXCHANGE, add_generation_prompt=False)
    except TemplateRejects:
        return ""
    closing = _closing(tokenizer, text.partition(_ANSWER)[2])
    # The first token ends the answer, those after it begin the next turn; one that would begin
    # any turn (<|im_start|>) ends none.
    for token in sorted(special_texts(tokenizer), key=len, reverse=True):
        if closing.strip().startswith(token):
            ends = token == tokenizer.eos_token or "user" in token.lower()
            return closing[: closing.index(token) + len(token)] if ends else ""
    return ""


_CALL: dict[str, Any] = {
    "type": "function",
    "id": "callabcde",
    "function": {"name": "f", "arguments": {"x": "y"}},
}


def stop_token_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens that end an answer: the end-of-text token, and those that end the template's turns.

    A turn that calls tools may end with a token of its own (gpt-oss).

    Raises:
        TemplateRejects: the template takes no plain question and answer.
    """
    return list(once(tokenizer, "stops", _find_stops))


def _find_stops(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    stops = {int(tokenizer.eos_token_id)}
    if not tokenizer.chat_template:
        return sorted(stops)
    added = set(tokenizer.get_added_vocab().values()) | set(tokenizer.all_special_ids)
    spoken = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"})
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    asked: Messages = ({"role": "user", "content": "a", "tools": tools},)
    calls: Messages = (*asked, {"role": "assistant", "content": "", "tool_calls": [_CALL]})
    for turns, optional in ((spoken, False), (calls, True)):
        try:
            piece = piece_of(tokenizer, turns, 1)
        except TemplateRejects:
            if optional:  # it has no place for tools
                continue
            raise
        ids = tokenizer(piece.answer, add_special_tokens=False).input_ids
        if ids and ids[-1] in added:
            stops.add(int(ids[-1]))
    return sorted(stops)
