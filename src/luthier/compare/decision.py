"""The table of the decision: quality, latency, tokens, cost and set-up of each approach."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from luthier.advise.answers import Goal
from luthier.advise.costs import Prices
from luthier.compare.approaches import Asked, Question, Record, ask_all
from luthier.compare.folder import ComparisonFolder
from luthier.compare.prompts import KINDS, Approach
from luthier.compare.rules import check_rules
from luthier.data.prepare import trained_on
from luthier.data.split import without_overlap
from luthier.evaluate.metrics import Metric, make_metrics
from luthier.evaluate.statistics import mean_interval, paired_test
from luthier.events import OnEvent, ignore
from luthier.files import write_json
from luthier.retrieve.index import Manifest
from luthier.run import Run

_SAMPLES = 30

Scores = dict[str, dict[Approach, list[float]]]  # one per row, by metric and approach


def compare_approaches(
    question: Question,
    out: Path,
    prices: Prices,
    *,
    by: str | None = None,
    goals: Mapping[str, Goal] | None = None,
    on_event: OnEvent = ignore,
) -> dict[str, Any]:
    """Ask, score and summarise; kept in ``out`` as ``comparison.json``.

    Args:
        by: field of the rows to score groups apart by.
        goals: what each metric measures, for the advisor's rules; see ``check_rules``.

    Returns:
        ``approaches`` with what each reached and took, ``rules`` with what the advisor would say
        and whether these results confirm it, ``samples`` with the answers side by side.

    Raises:
        UserError: as ``ask_all`` and ``make_metrics``.
    """
    folder = ComparisonFolder(out)
    with folder.worked_on():
        asked = ask_all(question, out, on_event)
    evaluate = question.recipe.evaluate
    metrics = make_metrics(evaluate.metrics, evaluate, asked.rows, out / "judge.jsonl")
    scores: Scores = {
        metric.name: {
            name: metric.scores([record["answer"] for record in records], asked.rows)
            for name, records in asked.records.items()
        }
        for metric in metrics
    }
    groups = _groups(asked, by)
    comparison = {
        "kind": "approaches",
        "data": question.data,
        "rows": len(asked.rows),
        "seen_in_training": _seen(asked, question.run, on_event),
        "documents": str(question.documents) if question.documents else None,
        "index": asdict(asked.manifest) if asked.manifest else None,
        "model": question.recipe.model.source,
        "run": str(question.run.root) if question.run else None,
        "by": by,
        "groups": {group: len(places) for group, places in groups.items()},
        "metrics": [
            {
                "name": metric.name,
                "label": metric.label,
                "share": metric.share or _is_share(scores[metric.name]),
                "higher_is_better": metric.higher_is_better,
            }
            for metric in metrics
        ],
        "approaches": [
            _entry(name, asked, question, metrics, scores, groups, prices)
            for name in question.approaches
        ],
        "rules": check_rules(metrics, scores, goals or {}),
        "samples": _samples(asked, scores),
        "prices": prices.model_dump(),
        "shots": question.shots,
        "passages": question.passages,
        "max_new_tokens": evaluate.max_new_tokens,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_json(folder.record_path, comparison)
    return comparison


def _seen(asked: Asked, run: Run | None, on_event: OnEvent) -> int:
    """How many questions are in the run's training set: scores on those are optimistic."""
    return 0 if run is None else len(without_overlap(asked.rows, trained_on(run, on_event))[1])


def _is_share(scores: dict[Approach, list[float]]) -> bool:
    """Whether a metric of the user's own gives yes or no only."""
    return all(score in (0.0, 1.0) for values in scores.values() for score in values)


def _groups(asked: Asked, by: str | None) -> dict[str, list[int]]:
    """Places of the rows of each group, by what their field ``by`` holds."""
    groups: dict[str, list[int]] = {}
    if by is not None:
        for place, row in enumerate(asked.rows):
            groups.setdefault(str(row.extra.get(by, "(none)")), []).append(place)
    return groups


def _entry(
    name: Approach,
    asked: Asked,
    question: Question,
    metrics: Sequence[Metric],
    scores: Scores,
    groups: dict[str, list[int]],
    prices: Prices,
) -> dict[str, Any]:
    records, first = asked.records[name], question.approaches[0]
    seconds = [record["seconds"] for record in records]
    prompt, output = (
        float(np.mean([record[key] for record in records]))
        for key in ("prompt_tokens", "output_tokens")
    )
    return {
        "name": name,
        "scores": {m.name: mean_interval(scores[m.name][name]).to_dict() for m in metrics},
        "against_first": None
        if name == first
        else {
            m.name: paired_test(
                scores[m.name][first], scores[m.name][name], higher_is_better=m.higher_is_better
            ).to_dict()
            for m in metrics
        },
        "groups": {
            group: {
                m.name: mean_interval([scores[m.name][name][place] for place in places]).to_dict()
                for m in metrics
            }
            for group, places in groups.items()
        },
        "latency": {
            "median": float(np.median(seconds)),
            "p95": float(np.quantile(seconds, 0.95)),
            "search_median": float(np.median([record["search_seconds"] for record in records])),
        },
        "prompt_tokens": prompt,
        "output_tokens": output,
        "cost_per_1000": cost_per_1000(records, prices),
        **_setup(name, question.run, asked.manifest, prices),
    }


def cost_per_1000(records: Sequence[Record], prices: Prices) -> float:
    """US dollars for 1,000 such queries.

    All approaches ask the same model, so all pay the price of hosting it (``tuned_input`` and
    ``tuned_output`` of the prices); a search pays for embedding the question besides.
    """
    dollars = 0.0
    for record in records:
        dollars += record["prompt_tokens"] * prices.tuned_input
        dollars += record["output_tokens"] * prices.tuned_output
        dollars += record["search_tokens"] * prices.embedding
    return dollars / 1e6 / len(records) * 1000


def _setup(
    name: Approach, run: Run | None, manifest: Manifest | None, prices: Prices
) -> dict[str, Any]:
    """Measured machine time of indexing and training, and its cost by tokens."""
    seconds = dollars = 0.0
    parts = []
    if KINDS[name].retrieves and manifest is not None:
        seconds += manifest.seconds
        dollars += manifest.tokens * prices.embedding / 1e6
        parts.append("index")
    if KINDS[name].tuned and run is not None:
        measured = run.measured()
        seconds += measured.seconds
        dollars += measured.tokens * prices.training / 1e6
        parts.append("training")
    return {"setup_seconds": seconds, "setup_cost": dollars, "setup": parts}


def _samples(asked: Asked, scores: Scores) -> list[dict[str, Any]]:
    return [
        {
            "row": str(row.origin),
            "question": str(row.prompt[-1]["content"]),
            "reference": row.reference,
            "answers": {name: records[place]["answer"] for name, records in asked.records.items()},
            "scores": {
                name: {metric: scores[metric][name][place] for metric in scores}
                for name in asked.records
            },
            "passages": next(
                (r[place]["passages"] for r in asked.records.values() if r[place]["passages"]), []
            ),
        }
        for place, row in enumerate(asked.rows[:_SAMPLES])
    ]
