"""What a template writes between the prompt and an answer's content, taken off what a model writes.

A model learns all of it: an empty thought (Qwen3), the name of a channel (gpt-oss). It is no part of
the answer that a person or a metric wants.
"""

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from luthier.data.conversation import Message
from luthier.data.facts import once
from luthier.data.spans import piece_of, stop_token_ids
from luthier.data.template import SENTINEL, TemplateRejects

_CONTENT, _THOUGHT = SENTINEL.format("content"), SENTINEL.format("thought")
_ASK: Message = {"role": "user", "content": "a"}


@dataclass(frozen=True)
class AnswerShape:
    """How a template frames an answer.

    Attributes:
        lead: what stands before the content of an answer without a thought.
        opening: what stands before a thought.
        closing: what stands between a thought and the content; empty where the template has no
            place for thoughts.
        special: some of it is special tokens, which decoding usually skips.
    """

    lead: str = ""
    opening: str = ""
    closing: str = ""
    special: bool = False

    @property
    def plain(self) -> bool:
        """Nothing but white space comes before the content."""
        return not self.lead.strip() and not self.closing.strip()

    def split(self, text: str) -> tuple[str, str]:
        """Thought and content of an answer; no thought where it does not follow the shape."""
        begun = text.lstrip()
        closing = self.closing.strip()
        if closing and closing in begun and begun.startswith(self.opening.strip()):
            thought, _, content = begun.removeprefix(self.opening.strip()).partition(closing)
            return thought.strip(), _without_space(content, self.closing)
        lead = self.lead.strip()
        if lead and begun.startswith(lead):
            return "", _without_space(begun.removeprefix(lead), self.lead)
        return "", text

    def settled(self, text: str) -> bool:
        """Whether what follows ``text`` cannot change where the content begins."""
        begun = text.lstrip()
        opening, closing, lead = self.opening.strip(), self.closing.strip(), self.lead.strip()
        if closing and begun.startswith(opening):
            if closing not in begun:
                return False
            before, rest = self.closing, begun.partition(closing)[2]
        elif lead and begun.startswith(lead):
            before, rest = self.lead, begun.removeprefix(lead)
        else:
            return not any(start.startswith(begun) for start in (lead, opening) if start)
        # The white space that belongs to the frame may still come.
        return bool(rest.strip()) or rest.startswith(before[len(before.rstrip()) :])


PLAIN = AnswerShape()


def _without_space(content: str, before: str) -> str:
    """``content`` without the white space that ``before`` ends in."""
    space = before[len(before.rstrip()) :]
    return content.removeprefix(space) if content.startswith(space) else content.lstrip()


def answer_shape(tokenizer: PreTrainedTokenizerBase) -> AnswerShape:
    """The shape of answers by the tokenizer's template."""
    return once(tokenizer, "answer shape", _shape)


def _shape(tokenizer: PreTrainedTokenizerBase) -> AnswerShape:
    if not tokenizer.chat_template:
        return PLAIN
    answer: Message = {"role": "assistant", "content": _CONTENT}
    lead = opening = closing = ""
    try:
        lead = piece_of(tokenizer, (_ASK, answer), 1).answer.partition(_CONTENT)[0]
        thinks = piece_of(tokenizer, (_ASK, {**answer, "reasoning_content": _THOUGHT}), 1).answer
        opening, _, rest = thinks.partition(_THOUGHT)
        closing = rest.partition(_CONTENT)[0]
    except TemplateRejects:  # no place for thoughts, or none for plain answers
        pass
    frame = lead + opening + closing
    special = any(token in frame for token in tokenizer.all_special_tokens)
    return AnswerShape(lead, opening, closing, special)


def decode_answer(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> tuple[str, str]:
    """Thought and content of the tokens that a model wrote after a prompt by its template."""
    shape = answer_shape(tokenizer)
    if not shape.special:
        text = str(tokenizer.decode(ids, skip_special_tokens=True))
        return ("", text) if shape.plain else shape.split(text)
    stops = set(stop_token_ids(tokenizer))
    end = next((place for place, token in enumerate(ids) if token in stops), len(ids))
    thought, content = shape.split(str(tokenizer.decode(ids[:end], skip_special_tokens=False)))
    for token in tokenizer.all_special_tokens:
        thought, content = thought.replace(token, ""), content.replace(token, "")
    return thought, content
