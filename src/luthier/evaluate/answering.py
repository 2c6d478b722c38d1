"""Answers of a model to many prompts, kept as they come: what was answered is not asked again."""

from collections.abc import Sequence

from luthier.evaluate.examination import Examination
from luthier.evaluate.store import key_of
from luthier.events import tracked
from luthier.generate.answer import Model, Prompt, Sampling, answer_all, encode_prompt


def answer_kept(
    examination: Examination,
    side: str,
    model: Model,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int,
    batch_size: int,
    task: str,
) -> list[str]:
    """Greedy answers of a side to ``prompts`` in their order; batches of prompts of like length.

    The examination's store holds answers of before and gets each batch's.

    Args:
        task: what this is, in the events about its progress; they count the answers to make.

    Raises:
        UserError: the template refuses a prompt, or a prompt is so long that no answer fits.
    """
    tokenizer, store = examination.models.tokenizer, examination.store
    encoded = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    keys = [key_of(examination.names[side], ids, max_new_tokens) for ids in encoded]
    fresh = {key: i for i, key in enumerate(keys) if key not in store}  # equal prompts once
    order = sorted(fresh.values(), key=lambda i: -len(encoded[i]))
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    for batch in tracked(batches, task, examination.on_event, len(order), "prompts", size=len):
        answers = answer_all(
            model,
            tokenizer,
            [prompts[i] for i in batch],
            Sampling(max_new_tokens=max_new_tokens),
            batch_size,
        )
        store.add({keys[i]: answer for i, answer in zip(batch, answers, strict=True)})
    return [str(store[key]) for key in keys]
