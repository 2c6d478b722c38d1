"""The probe put to one model."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from luthier.data.conversation import Conversation, Message, Origin
from luthier.data.spans import stop_token_ids
from luthier.data.tokens import Tokenizer, TokenRow
from luthier.evaluate.answering import answers_of_both
from luthier.evaluate.examination import Examination, Loaded
from luthier.evaluate.likelihood import RowLoss
from luthier.evaluate.probe.choices import Question, choice_scores
from luthier.evaluate.probe.items import UNRELATED, Item, load_passages
from luthier.generate.answer import Prompt

ANSWER_TOKENS = 48  # longest answer to an open or unrelated question
_BATCH = 64
_ORIGIN = Origin("probe", 0)


@dataclass(frozen=True)
class Probed:
    """What one model did.

    Attributes:
        right: 1 or 0 by id, for the scored items.
        said: by id, the choice taken or the answer given, unrelated questions included.
        texts: loss of each passage.
    """

    right: dict[str, float]
    said: dict[str, str]
    texts: list[RowLoss]


def ask(
    examination: Examination,
    side: str,
    model: Loaded,
    items: Sequence[Item],
    questions: Sequence[Question],
    answers: Sequence[str],
) -> Probed:
    """Score ``items`` and the passages.

    Args:
        questions: the multiple-choice items as ``tokenised`` makes them, in their order.
        answers: what this side said to the others, in their order (``open_answers``).
    """
    choices = [item for item in items if item.answer is not None]
    spoken = [item for item in items if item.answer is None]
    task = f"probe of {side}, multiple choice"
    scores = examination.once(
        side,
        model,
        task,
        [repr(question).encode() for question in questions],
        lambda loaded: choice_scores(loaded, questions, task, examination.on_event),
    )
    said: dict[str, str] = {}
    right: dict[str, float] = {}
    for item, values in zip(choices, scores, strict=True):
        best = values.index(max(values))
        said[item.id] = ([item.answer or "", *item.wrong])[best]
        right[item.id] = float(best == 0)
    for item, answer in zip(spoken, answers, strict=True):
        said[item.id] = answer
        if item.area != UNRELATED:
            right[item.id] = float(item.right(answer))
    tokenizer = examination.models.tokenizer
    rows = text_rows(tokenizer, load_passages())
    losses = examination.losses(side, model, rows, f"probe of {side}, passages")
    return Probed(right, said, losses)


def open_answers(
    examination: Examination, items: Sequence[Item], *, plain: bool
) -> dict[str, list[str]]:
    """What base and tuned say to those of ``items`` that have no choices, in their order.

    Args:
        plain: the run was trained on plain text, so questions are put without a chat template.
    """
    return answers_of_both(
        examination,
        [_prompt(item, plain=plain) for item in items if item.answer is None],
        max_new_tokens=ANSWER_TOKENS,
        batch_size=_BATCH,
        task="probe, open questions",
    )


def tokenised(tokenizer: PreTrainedTokenizerBase, item: Item, *, plain: bool) -> Question:
    """Prompt and choices as tokens, an answer's end-of-turn token omitted."""
    assert item.answer is not None
    encoder = Tokenizer(tokenizer, "completions")
    stops = set(stop_token_ids(tokenizer))
    prompt: list[int] = []
    choices = []
    for choice in (item.answer, *item.wrong):
        if plain:
            ids = tokenizer(_plain_prompt(item)).input_ids
            ids = ids[:-1] if ids[-1] in stops else ids
            prompt, answer = ids, tokenizer(f" {choice}", add_special_tokens=False).input_ids
        else:
            turns: tuple[Message, ...] = (
                {"role": "user", "content": item.question},
                {"role": "assistant", "content": choice},
            )
            (row,) = encoder.encode(Conversation(_ORIGIN, turns))
            start = row.supervised.index(True)
            end = max(i for i, counts in enumerate(row.supervised) if counts) + 1
            prompt, answer = row.input_ids[:start], row.input_ids[start:end]
            answer = answer[:-1] if answer[-1] in stops else answer
        choices.append(list(answer))
    sizes = [len(choice.encode()) for choice in (item.answer, *item.wrong)]
    return Question(list(prompt), choices, sizes)


def text_rows(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[TokenRow]:
    """Plain prose, each text by itself."""
    encoder = Tokenizer(tokenizer, "completions")
    return [row for text in texts for row in encoder.encode(Conversation(_ORIGIN, text=text))]


def _prompt(item: Item, *, plain: bool) -> Prompt:
    return _plain_prompt(item) if plain else ({"role": "user", "content": item.question},)


def _plain_prompt(item: Item) -> str:
    return f"Question: {item.question}\nAnswer:"
