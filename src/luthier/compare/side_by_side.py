"""Finished runs side by side: what each reached on the rows that all of them answered."""

from collections.abc import Sequence

from luthier.errors import UserError
from luthier.evaluate.statistics import mean_interval, paired_test
from luthier.records import AnsweredRow, Evaluation, Record
from luthier.records.comparison import ComparedMetric
from luthier.records.evaluation import Interval, PairedTest
from luthier.run import Run


class RunCompared(Record):
    """One run. ``against_first`` is by metric; None of the first run itself."""

    name: str
    scores: dict[str, Interval]
    against_first: dict[str, PairedTest] | None


class RunsCompared(Record):
    """Runs on the rows that all of them answered.

    Attributes:
        rows: how many these are; each run may have answered others besides.
    """

    rows: int
    metrics: list[ComparedMetric]
    runs: list[RunCompared]


def compare_runs(runs: Sequence[Run]) -> RunsCompared:
    """Test each run against the first, row by row, by the metrics that all were evaluated for.

    Raises:
        UserError: a run is not evaluated or its files are damaged, or there is no row or no metric
            that all share.
    """
    answered = [_answered(run) for run in runs]
    places = [place for place in answered[0] if all(place in rows for rows in answered)]
    if not places:
        raise UserError(
            "these runs were evaluated on different rows, so they cannot be compared row by row: "
            "evaluate each with the same --data"
        )
    about = _evaluation(runs[0]).metrics
    metrics = [
        ComparedMetric(
            name=name,
            label=about[name].label,
            share=about[name].share,
            higher_is_better=about[name].higher_is_better,
        )
        for name in answered[0][places[0]].scores.tuned
        if name in about
        and all(name in rows[place].scores.tuned for rows in answered for place in places)
    ]
    if not metrics:
        raise UserError("these runs were evaluated by different metrics, so nothing compares them")
    first = _scores(answered[0], places, metrics)
    compared = []
    for run, rows in zip(runs, answered, strict=True):
        scores = _scores(rows, places, metrics)
        compared.append(
            RunCompared(
                name=run.root.name,
                scores={name: mean_interval(values) for name, values in scores.items()},
                against_first=None
                if run is runs[0]
                else {
                    m.name: paired_test(
                        first[m.name], scores[m.name], higher_is_better=m.higher_is_better
                    )
                    for m in metrics
                },
            )
        )
    return RunsCompared(rows=len(places), metrics=metrics, runs=compared)


def _evaluation(run: Run) -> Evaluation:
    found = run.evaluation()
    if found is None:
        raise UserError(f"{run.root.name} is not evaluated yet: luthier evaluate {run.root}")
    return found


def _answered(run: Run) -> dict[tuple[str, str], AnsweredRow]:
    """The answered rows by what was asked and what was wanted."""
    _evaluation(run)
    return {(repr(row.messages), row.reference): row for row in run.answered_rows()}


def _scores(
    rows: dict[tuple[str, str], AnsweredRow],
    places: Sequence[tuple[str, str]],
    metrics: Sequence[ComparedMetric],
) -> dict[str, list[float]]:
    return {m.name: [rows[place].scores.tuned[m.name] for place in places] for m in metrics}
