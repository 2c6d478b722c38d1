"""Base and tuned, asked the same questions."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace

from luthier.generate.answer import Ask, Prompt, Sampling, answer_each, encode_prompt
from luthier.generate.batching import Pace
from luthier.models.tuned import TunedModel


def answer_sides(
    models: TunedModel,
    prompts: Sequence[Prompt],
    sides: Sequence[str],
    sampling: Sampling,
    batch_size: int,
    pace: Pace | None = None,
) -> dict[str, list[str]]:
    """The answers of each of ``sides``, "base" or "tuned", to ``prompts``, in their order.

    Raises:
        UserError: the template refuses a prompt, or a prompt is so long that no answer fits.
    """
    encoded = [encode_prompt(models.tokenizer, prompt) for prompt in prompts]
    asks = [Ask(ids, side == "base", draw) for side in sides for draw, ids in enumerate(encoded)]
    made = sorted(answer_both(models, asks, sampling, batch_size, pace))
    texts = iter(text for _, text in made)
    return {side: [next(texts) for _ in prompts] for side in sides}


def answer_both(
    models: TunedModel,
    asks: Sequence[Ask],
    sampling: Sampling,
    batch_size: int,
    pace: Pace | None = None,
) -> Iterator[tuple[int, str]]:
    """The number of each of ``asks`` and its answer, as it ends.

    Both sides share batches where the base is the tuned model without its adapter; else they are
    asked one after the other.

    Raises:
        UserError: a prompt is so long that no answer fits.
    """
    if models.holds_base:
        yield from answer_each(models.tuned, models.tokenizer, asks, sampling, batch_size, pace)
        return
    for base in (True, False):
        numbers = [number for number, ask in enumerate(asks) if ask.base is base]
        if not numbers:
            continue
        own = [replace(asks[number], base=False) for number in numbers]
        with models.as_base() if base else nullcontext(models.tuned) as model:
            made = answer_each(model, models.tokenizer, own, sampling, batch_size, pace)
            for place, text in made:
                yield numbers[place], text
