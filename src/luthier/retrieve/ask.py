"""Answer a question from passages, and list them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from luthier.data.conversation import Message
from luthier.generate.answer import Model, Sampling, answer_all, encode_prompt
from luthier.retrieve.passages import Passage
from luthier.retrieve.search import Hit, Index

_INSTRUCTION = (
    "Answer from the passages above in one or two sentences, and name the passage that says so, "
    "like [1]. If none of them says so, answer that you do not know.\n\nQuestion: "
)
_CITED = re.compile(r"\[(\d+)\]")
_SUPPORTED = 0.5


@dataclass(frozen=True)
class Source:
    """A passage the model was shown, by the ``number`` it was shown under.

    Attributes:
        cited: the answer names it.
        support: share of the answer's words, those of the question aside, that occur in it.
    """

    number: int
    hit: Hit
    cited: bool
    support: float


@dataclass(frozen=True)
class Answer:
    """An answer and its sources; ``grounded``: one of them holds half its words or more."""

    text: str
    sources: list[Source]
    grounded: bool
    prompt_tokens: int


def ask(
    index: Index,
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    question: str,
    count: int,
    max_new_tokens: int,
) -> Answer:
    """Search for ``count`` passages and let the model answer from them (Lewis et al. 2020).

    Raises:
        UserError: the passages leave no room for an answer.
    """
    hits = index.search(question, count)
    user = {"role": "user", "content": _INSTRUCTION + question}
    prompt = with_passages((user,), [hit.passage for hit in hits])
    text = answer_all(model, tokenizer, [prompt], Sampling(max_new_tokens), 1)[0].strip()
    cited = {int(number) for number in _CITED.findall(text)}
    sources = [
        Source(number, hit, number in cited, support(text, question, hit.passage))
        for number, hit in enumerate(hits, start=1)
    ]
    grounded = max((source.support for source in sources), default=0.0) >= _SUPPORTED
    return Answer(text, sources, grounded, len(encode_prompt(tokenizer, prompt)))


def with_passages(messages: Sequence[Message], passages: Sequence[Passage]) -> tuple[Message, ...]:
    """The messages with numbered passages before the content of the last, a user's."""
    shown = "\n\n".join(
        f"[{number}] {passage.title + ': ' if passage.title else ''}{passage.text}"
        for number, passage in enumerate(passages, start=1)
    )
    *before, last = messages
    return (*before, {**last, "content": f"Passages:\n\n{shown}\n\n{last['content']}"})


def support(answer: str, question: str, passage: Passage) -> float:
    """Share of the words an answer adds to its question that occur in the passage; 0 to 1.

    A crude measure of whether an answer was read or made up: it sees words, not what they say.
    """
    words = _words(_CITED.sub(" ", answer)) - _words(question)
    return len(words & _words(f"{passage.title} {passage.text}")) / len(words) if words else 0.0


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))
