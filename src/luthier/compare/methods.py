"""Train the variants of a recipe, evaluate each on the same rows, and compare them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from luthier.compare.folder import ComparisonFolder
from luthier.compare.variants import Variant
from luthier.errors import UserError
from luthier.evaluate.before_after import evaluate_run
from luthier.evaluate.preference import PREFERS
from luthier.evaluate.report.page import write_report
from luthier.evaluate.statistics import mean_interval, paired_test
from luthier.events import Event, Note, OnEvent, Progress, ignore
from luthier.files import write_json
from luthier.records import Evaluation, Measured
from luthier.run import Run, claim_run
from luthier.runs import train_run_apart


@dataclass(frozen=True)
class Trained:
    """A variant with what its run left behind.

    Attributes:
        rows: what it was asked, as it is known again: prompts with their references, or pairs.
        scores: by metric, one per row.
    """

    variant: Variant
    run: Run
    measured: Measured
    evaluation: Evaluation
    rows: list[Any]
    scores: dict[str, list[float]]


def compare_methods(
    variants: Sequence[Variant],
    out: Path,
    data: str | None,
    *,
    metrics: Sequence[str] | None = None,
    price_per_hour: float | None = None,
    on_event: OnEvent = ignore,
) -> dict[str, Any]:
    """Train what is not trained yet, evaluate what is not evaluated yet, and compare.

    Each run is a process of its own (`luthier train`), so that its peak memory is its own. The
    result is kept in ``out`` as ``comparison.json``.

    Args:
        data: rows to evaluate on; None: each run's validation rows, the same where the seed is.
        metrics: names instead of the recipe's.
        price_per_hour: of this machine, US dollars.

    Raises:
        UserError: a run cannot start, or failed.
        Interrupted: the user stopped a run; it saved, and the same command goes on.
    """
    folder = ComparisonFolder(out)
    with folder.worked_on():
        comparison = _summary(_train(variants, data, metrics, on_event), data, price_per_hour)
        write_json(folder.record_path, comparison)
    return comparison


def _train(
    variants: Sequence[Variant], data: str | None, metrics: Sequence[str] | None, on_event: OnEvent
) -> list[Trained]:
    """All variants, trained and evaluated."""
    runs = [claim_run(variant.recipe, "compare") for variant in variants]  # before any work
    for number, (variant, run) in enumerate(zip(variants, runs, strict=True), start=1):
        if not run.finished:
            on_event(Note(f"run {number} of {len(runs)}: {run.root.name}"))
            train_run_apart(variant.recipe, run, on_event)
    trained = []
    for variant, run in zip(variants, runs, strict=True):
        wanted = list(metrics or variant.recipe.evaluate.metrics)
        if not _is_evaluated(run, data, wanted):
            _evaluate(run, data, wanted, on_event)
        evaluation = run.evaluation()
        assert evaluation is not None
        trained.append(Trained(variant, run, run.measured(), evaluation, *_asked(run)))
    return trained


def _asked(run: Run) -> tuple[list[Any], dict[str, list[float]]]:
    """Rows and scores of an evaluation; a reward model's are pairs, and whether it prefers the chosen."""
    if run.recipe().objective.scores:
        pairs = run.scored_pairs()
        return [pair.row for pair in pairs], {PREFERS: [float(pair.is_right) for pair in pairs]}
    rows = run.answered_rows()
    names = rows[0].scores.tuned if rows else {}
    return (
        [(row.messages, row.reference) for row in rows],
        {name: [row.scores.tuned[name] for row in rows] for name in names},
    )


def _evaluate(run: Run, data: str | None, metrics: Sequence[str], on_event: OnEvent) -> None:
    """What `luthier evaluate` does: the evaluation and its report, in the run's folder."""

    def named(event: Event) -> None:
        if isinstance(event, Progress):
            event = replace(event, task=f"{run.root.name}: {event.task}")
        on_event(event)

    evaluate_run(run, data, named, metrics=metrics)
    write_report(run)


def _is_evaluated(run: Run, data: str | None, metrics: Sequence[str]) -> bool:
    """Whether ``evaluation.json`` is of these weights, rows and metrics."""
    source = run.validation_path if data is None else Path(data)
    made_of = [run.measured_path, source]
    try:
        evaluation = run.evaluation()
    except UserError:  # damaged, or of a version that measured less
        evaluation = None
    scores = run.recipe().objective.scores
    rows = run.scored_pairs_path if scores else run.answered_rows_path
    if evaluation is None or not rows.is_file():
        return False
    written = run.evaluation_path.stat().st_mtime
    # A metric of the user's own goes by the stem of its file.
    names = {Path(name).stem if name.endswith(".py") else name for name in metrics}
    return (
        all(path.stat().st_mtime <= written for path in made_of if path.exists())
        and evaluation.data == str(source if data is None else data)
        and evaluation.adapter_scale == 1
        and (scores or names <= set(evaluation.metrics))
    )


def _summary(
    trained: Sequence[Trained], data: str | None, price_per_hour: float | None
) -> dict[str, Any]:
    groups: dict[str, list[Trained]] = {}
    for one in trained:
        groups.setdefault(one.variant.name, []).append(one)
    first = trained[0].evaluation
    _check_rows(trained)
    metrics = [
        {"name": name, **_about(first, name)}
        for name in trained[0].scores
        if all(name in one.scores for one in trained)  # one may have been evaluated for more
    ]
    reference = next(
        (n for n, ones in groups.items() if ones[0].variant.recipe.method.name == "full"),
        next(iter(groups)),
    )
    entries = [
        _entry(name, ones, groups[reference], metrics, price_per_hour)
        for name, ones in groups.items()
    ]
    kept = next((t for t in trained if t.variant.recipe.method.name != "qlora"), trained[0])
    return {
        "kind": "methods",
        "model": trained[0].variant.recipe.model.source,
        "train": trained[0].variant.recipe.train_files,
        "data": data or "the validation rows of the runs",
        "rows": len(trained[0].rows),
        "seen_in_training": max(one.evaluation.seen_in_training for one in trained),
        "seeds": len(groups[reference]),
        "varied": list(trained[0].variant.changes),
        "reference": reference,
        "metrics": metrics,
        "base": {
            m["name"]: kept.evaluation.metrics[m["name"]].base.to_dict()
            for m in metrics
            if m["name"] in kept.evaluation.metrics  # a reward model's base scores nothing
        },
        "variants": entries,
        "dtypes": sorted({one.measured.dtype for one in trained}),
        "device": trained[0].measured.device,
        "price_per_hour": price_per_hour,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _check_rows(trained: Sequence[Trained]) -> None:
    if not trained[0].rows:
        raise UserError(
            "no row was answered, so there is nothing to compare: the rows are plain text, or "
            "evaluate.max_rows is 0; give rows with questions by --data"
        )
    for one in trained:
        if one.rows != trained[0].rows:
            raise UserError(
                f"{one.run.root.name} answered different rows from {trained[0].run.root.name}: a varied "
                "key changes the validation split; give the rows to compare on with --data"
            )


def _about(evaluation: Evaluation, metric: str) -> dict[str, Any]:
    if metric not in evaluation.metrics:
        return {"label": "prefers chosen answer", "share": True, "higher_is_better": True}
    found = evaluation.metrics[metric]
    return {key: getattr(found, key) for key in ("label", "share", "higher_is_better")}


def _entry(
    name: str,
    ones: Sequence[Trained],
    reference: Sequence[Trained],
    metrics: Sequence[dict[str, Any]],
    price_per_hour: float | None,
) -> dict[str, Any]:
    measured = [one.measured for one in ones]
    hours = _mean(m.seconds for m in measured) / 3600
    scores = {m["name"]: _scores(ones, m["name"]) for m in metrics}
    wanted = {m["name"]: _scores(reference, m["name"]) for m in metrics}
    main = metrics[0]["name"]
    whole = _mean(wanted[main])
    plan = ones[0].run.plan()
    return {
        "name": name,
        "changes": ones[0].variant.changes,
        "method": ones[0].variant.recipe.method.name,
        "learning_rate": ones[0].variant.recipe.train.learning_rate,
        "runs": [str(one.run.root) for one in ones],
        "scores": {key: mean_interval(values).to_dict() for key, values in scores.items()},
        "by_seed": {
            m["name"]: [float(np.mean(_scores([one], m["name"]))) for one in ones] for m in metrics
        },
        "share_of_reference": _mean(scores[main]) / whole if whole else None,
        "against_reference": None
        if ones is reference
        else {
            m["name"]: paired_test(
                wanted[m["name"]], scores[m["name"]], higher_is_better=m["higher_is_better"]
            ).to_dict()
            for m in metrics
        },
        "eval_loss": _loss(ones),
        "forgetting": _forgetting(ones),
        "trainable_parameters": measured[0].trainable_parameters,
        "total_parameters": measured[0].total_parameters,
        "peak_predicted_bytes": plan.memory.peak if plan else None,
        "peak_measured_bytes": max(m.peak_memory_bytes for m in measured),
        "seconds": hours * 3600,
        "tokens_per_second": _mean(m.tokens_per_second for m in measured),
        "tokens": measured[0].tokens,
        "weights_bytes": _weights_bytes(ones[0]),
        "cost": hours * price_per_hour if price_per_hour is not None else None,
        "dtype": measured[0].dtype,
        "curve": _curve(ones[0].run),
    }


def _scores(ones: Sequence[Trained], metric: str) -> list[float]:
    """One score per row: the mean over the seeds, which answered the same rows."""
    columns = [one.scores[metric] for one in ones]
    return [sum(values) / len(values) for values in zip(*columns, strict=True)]


def _loss(ones: Sequence[Trained]) -> float | None:
    """On held-out rows: of the evaluation, or of a reward model the lowest of its training."""
    found = [one.evaluation.tuned.get("loss", one.measured.best_eval_loss) for one in ones]
    told = [loss for loss in found if loss is not None]
    return _mean(told) if told else None


def _forgetting(ones: Sequence[Trained]) -> dict[str, Any] | None:
    """The worst verdict of the seeds, and the mean change of the probe's accuracy."""
    found = [one.evaluation.forgetting for one in ones if one.evaluation.forgetting is not None]
    if not found:
        return None
    verdicts = [probe.verdict for probe in found]
    return {
        "verdict": max(verdicts, key=("kept", "some forgetting", "forgot").index),
        "accuracy_change": _mean(probe.accuracy.test.difference for probe in found),
        "reasons": list(dict.fromkeys(text for probe in found for text in probe.reasons)),
    }


def _mean(values: Any) -> float:
    return float(np.mean(list(values)))


def _weights_bytes(one: Trained) -> int:
    folder = one.run.weights_path(one.variant.recipe)
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def _curve(run: Run) -> dict[str, list[list[float]]]:
    """Points (step, loss) of training and validation."""
    lines = run.metrics()
    return {
        "loss": [[line.step, line.loss] for line in lines if line.loss is not None],
        "eval_loss": [[line.step, line.eval_loss] for line in lines if line.eval_loss is not None],
    }
