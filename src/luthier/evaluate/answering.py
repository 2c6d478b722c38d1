"""Answers of base and tuned to many prompts, kept as they come: none is made twice."""

from collections.abc import Sequence

from luthier.evaluate.base_answers import find_answers, keep_answers
from luthier.evaluate.examination import Examination
from luthier.evaluate.store import key_of
from luthier.events import Note, tracked
from luthier.generate.answer import Ask, Prompt, Sampling, encode_prompt
from luthier.generate.sides import answer_both


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
    examination's store holds answers of before and gets each new one; the base's can also come from
    evaluations of other runs.

    Args:
        batch_size: answers of each side that are made at once.
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
    if examination.base_kept:
        found = find_answers([key for key in dict.fromkeys(keys["base"]) if key not in store])
        store.add(found)
        if found:
            examination.on_event(
                Note(f"{task}: {len(found)} of the base's are kept from an earlier evaluation")
            )
    missing = {  # equal prompts once
        key: Ask(ids, base=side == "base")
        for side, of_side in keys.items()
        for key, ids in zip(of_side, encoded, strict=True)
        if key not in store
    }
    sampling = Sampling(max_new_tokens=max_new_tokens)
    models = examination.models
    at_once = 2 * batch_size if models.holds_base else batch_size
    made = answer_both(models, list(missing.values()), sampling, at_once)
    waited = list(missing)
    for number, answer in tracked(made, task, examination.on_event, len(missing), "answers"):
        store.add({waited[number]: answer})
    if examination.base_kept:
        keep_answers({key: str(store[key]) for key in keys["base"] if key in missing})
    return {side: [str(store[key]) for key in of_side] for side, of_side in keys.items()}
