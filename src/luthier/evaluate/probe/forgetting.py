"""What the tuned model forgot: the probe on both sides, and a verdict."""

import time
from collections.abc import Sequence
from typing import Any

from luthier.data.conversation import Conversation
from luthier.evaluate.examination import Examination, Loaded
from luthier.evaluate.losses import compare_losses
from luthier.evaluate.probe.asking import Probed, ask, open_answers, tokenised
from luthier.evaluate.probe.divergence import divergences
from luthier.evaluate.probe.items import UNRELATED, load_items, load_passages
from luthier.evaluate.probe.leakage import find_leakage, markers_of
from luthier.evaluate.probe.remedies import remedies
from luthier.evaluate.probe.verdict import judge
from luthier.evaluate.statistics import mean_interval, paired_test
from luthier.events import during
from luthier.files import write_jsonl
from luthier.records.evaluation import (
    Compared,
    Forgetting,
    Leakage,
    Limits,
    ProbeFindings,
    TextCompared,
)


def probe_forgetting(examination: Examination, training: Sequence[Conversation]) -> Forgetting:
    """Put the probe to base and tuned; every answer is kept in ``evaluation/probe.jsonl``.

    Args:
        training: rows the run was trained on, for format leakage.
    """
    run, models = examination.run, examination.models
    items = load_items()
    plain = not run.provenance().learned_turns
    seconds: dict[str, float] = {}
    with during("reading the probe", examination.on_event):
        questions = [
            tokenised(models.tokenizer, item, plain=plain)
            for item in items
            if item.answer is not None
        ]

    started = time.perf_counter()
    answers = open_answers(examination, items, plain=plain)
    both = time.perf_counter() - started

    def put(side: str, model: Loaded) -> Probed:
        started = time.perf_counter()
        probed = ask(examination, side, model, items, questions, answers[side])
        seconds[side] = round(time.perf_counter() - started + both / 2, 1)
        return probed

    base, tuned = examination.of_both(put)
    unrelated = [item for item in items if item.area == UNRELATED]
    prompts = [
        item.question if plain else ({"role": "user", "content": item.question},)
        for item in unrelated
    ]
    said = [base.said[item.id] for item in unrelated]
    moved, tokens = divergences(models, prompts, said, examination.on_event)
    leakage = find_leakage(
        [item.question for item in unrelated],
        [base.said[item.id] for item in unrelated],
        [tuned.said[item.id] for item in unrelated],
        training,
        load_passages(),
        markers_of(models.tokenizer),
    )
    write_jsonl(run.probe_answers_path, _answers(base, tuned, leakage))
    loss, perplexity = compare_losses(base.texts, tuned.texts)
    found = ProbeFindings(
        items=len(items),
        accuracy=_compare(base, tuned, list(base.right)),
        areas=_areas(base, tuned),
        text=TextCompared(loss=loss, perplexity=perplexity),
        kl=mean_interval(moved, tokens) if moved else None,
        leakage=leakage,
        seconds=seconds,
    )
    limits = examination.recipe.evaluate
    verdict, reasons = judge(found, limits)
    return Forgetting(
        **dict(found),
        verdict=verdict,
        reasons=reasons,
        limits=Limits(
            max_accuracy_drop=limits.max_accuracy_drop,
            max_perplexity_ratio=limits.max_perplexity_ratio,
            max_leakage=limits.max_leakage,
        ),
        remedies=[] if verdict == "kept" else remedies(run, examination.recipe),
    )


def _areas(base: Probed, tuned: Probed) -> dict[str, Compared]:
    by_area: dict[str, list[str]] = {}
    area_of = {item.id: item.area for item in load_items()}
    for key in base.right:
        by_area.setdefault(area_of[key], []).append(key)
    return {area: _compare(base, tuned, chosen) for area, chosen in by_area.items()}


def _compare(base: Probed, tuned: Probed, chosen: list[str]) -> Compared:
    before, after = [base.right[i] for i in chosen], [tuned.right[i] for i in chosen]
    return Compared(
        base=mean_interval(before), tuned=mean_interval(after), test=paired_test(before, after)
    )


def _answers(base: Probed, tuned: Probed, leakage: Leakage) -> list[dict[str, Any]]:
    """Every item with what both sides said, for readers who want details."""
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
