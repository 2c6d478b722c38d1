"""What the tuned model forgot: the probe on both sides, and a verdict."""

import time
from collections.abc import Sequence
from typing import Any

from luthier.data.conversation import Conversation
from luthier.evaluate.perplexity import loss_and_perplexity
from luthier.evaluate.probe.asking import Probed, ask, tokenised
from luthier.evaluate.probe.divergence import divergences
from luthier.evaluate.probe.items import UNRELATED, load_items, load_passages
from luthier.evaluate.probe.leakage import Leakage, find_leakage, markers_of
from luthier.evaluate.probe.remedies import remedies
from luthier.evaluate.probe.verdict import judge
from luthier.evaluate.statistics import mean_interval, paired_test
from luthier.evaluate.store import Store
from luthier.events import OnEvent, during
from luthier.generate.answer import Model
from luthier.models.tuned import TunedModel
from luthier.recipe import Recipe
from luthier.run import Run


def probe_forgetting(
    run: Run,
    models: TunedModel,
    recipe: Recipe,
    training: Sequence[Conversation],
    store: Store,
    names: dict[str, str],
    on_event: OnEvent,
) -> dict[str, Any]:
    """Put the probe to base and tuned; the ``forgetting`` part of ``evaluation.json``.

    Args:
        training: rows the run learned from, for format leakage.
        store, names: as for ``answer_kept``, ``names`` by side.
    """
    items = load_items()
    plain = (recipe.provenance or {}).get("template") == "none"
    seconds: dict[str, float] = {}
    with during("reading the probe", on_event):
        questions = [
            tokenised(models.tokenizer, item, plain=plain)
            for item in items
            if item.answer is not None
        ]

    def put(side: str, model: Model) -> Probed:
        started = time.perf_counter()
        probed = ask(
            model,
            models.tokenizer,
            items,
            questions,
            plain=plain,
            store=store,
            side=names[side],
            name=side,
            on_event=on_event,
        )
        seconds[side] = round(time.perf_counter() - started, 1)
        return probed

    with models.as_base() as base_model:
        base = put("base", base_model)
    tuned = put("tuned", models.tuned)
    unrelated = [item for item in items if item.area == UNRELATED]
    prompts = [
        item.question if plain else ({"role": "user", "content": item.question},)
        for item in unrelated
    ]
    said = [base.said[item.id] for item in unrelated]
    moved, tokens = divergences(models, prompts, said, on_event)
    leakage = find_leakage(
        [item.question for item in unrelated],
        [base.said[item.id] for item in unrelated],
        [tuned.said[item.id] for item in unrelated],
        training,
        load_passages(),
        markers_of(models.tokenizer),
    )
    result = {
        "items": len(items),
        **_accuracies(base, tuned),
        "text": _texts(base, tuned),
        "kl": mean_interval(moved, tokens).to_json() if moved else None,
        "leakage": leakage.to_json(),
        "seconds": seconds,
    }
    verdict = judge(result, recipe.evaluate)
    result |= verdict.to_json()
    result["remedies"] = (
        [] if verdict.verdict == "kept" else [r.to_json() for r in remedies(run, recipe)]
    )
    result["answers"] = _answers(base, tuned, leakage)
    return result


def _accuracies(base: Probed, tuned: Probed) -> dict[str, Any]:
    by_id = {item.id: item.area for item in load_items()}
    ids = list(base.right)

    def compare(chosen: list[str]) -> dict[str, Any]:
        before, after = [base.right[i] for i in chosen], [tuned.right[i] for i in chosen]
        return {
            "base": mean_interval(before).to_json(),
            "tuned": mean_interval(after).to_json(),
            "test": paired_test(before, after).to_json(),
        }

    areas = list(dict.fromkeys(by_id[i] for i in ids))
    return {
        "accuracy": compare(ids),
        "areas": {area: compare([i for i in ids if by_id[i] == area]) for area in areas},
    }


def _texts(base: Probed, tuned: Probed) -> dict[str, Any]:
    loss, perplexity = loss_and_perplexity(base.texts, tuned.texts)
    return {"loss": loss, "perplexity": perplexity}


def _answers(base: Probed, tuned: Probed, leakage: Leakage) -> list[dict[str, Any]]:
    """Every item with what both sides said, for who wants to look."""
    leaking = {leak.question for leak in leakage.leaks}
    return [
        {
            "id": item.id,
            "area": item.area,
            "question": item.question,
            "right_answer": item.answer,
            "base": base.said[item.id],
            "tuned": tuned.said[item.id],
            "base_right": base.right.get(item.id),
            "tuned_right": tuned.right.get(item.id),
            "leaks": item.question in leaking if item.area == UNRELATED else None,
        }
        for item in load_items()
    ]
