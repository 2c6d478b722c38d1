"""Answers of base and tuned to many prompts, kept as they come: none is made twice."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext

from luthier.evaluate.examination import Examination
from luthier.evaluate.store import key_of
from luthier.events import tracked
from luthier.generate.answer import Ask, Prompt, Sampling, answer_each, encode_prompt
from luthier.models.tuned import TunedModel


def answers_of_both(
    examination: Examination,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int,
    batch_size: int,
    task: str,
) -> dict[str, list[str]]:
    """Greedy answers of ``base`` and ``tuned`` to ``prompts`` in their order.

    Both are asked in one batch where the base is the tuned model without its adapter. The
    examination's store holds answers of before and gets each new one.

    Args:
        task: what this is, in the events about its progress; they count the answers to make.

    Raises:
        UserError: the template refuses a prompt, or a prompt is so long that no answer fits.
    """
    tokenizer, store = examination.models.tokenizer, examination.store
    encoded = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    keys = {
        side: [key_of(name, ids, max_new_tokens) for ids in encoded]
        for side, name in examination.names.items()
    }
    missing = {  # equal prompts once
        key: Ask(ids, base=side == "base")
        for side, of_side in keys.items()
        for key, ids in zip(of_side, encoded, strict=True)
        if key not in store
    }
    sampling = Sampling(max_new_tokens=max_new_tokens)
    made = _answers(examination.models, missing, sampling, batch_size)
    for key, answer in tracked(made, task, examination.on_event, len(missing), "answers"):
        store.add({key: answer})
    return {side: [str(store[key]) for key in of_side] for side, of_side in keys.items()}


def _answers(
    models: TunedModel, asks: dict[str, Ask], sampling: Sampling, batch_size: int
) -> Iterator[tuple[str, str]]:
    tuned, tokenizer = models.tuned, models.tokenizer
    if models.holds_base:
        keys = list(asks)
        made = answer_each(tuned, tokenizer, list(asks.values()), sampling, batch_size)
        yield from ((keys[number], answer) for number, answer in made)
        return
    for base in (True, False):
        side = {key: Ask(ask.prompt) for key, ask in asks.items() if ask.base is base}
        if not side:
            continue
        keys = list(side)
        with models.as_base() if base else nullcontext(tuned) as model:
            made = answer_each(model, tokenizer, list(side.values()), sampling, batch_size)
            yield from ((keys[number], answer) for number, answer in made)
