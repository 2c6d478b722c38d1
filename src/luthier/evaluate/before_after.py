"""Base against tuned on rows outside the training set: loss, perplexity, answers, and the confidence in each."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from luthier.data.prepare import (
    held_out,
    read_for_evaluation,
    tokenise,
    tokenise_pairs,
    trained_on,
)
from luthier.data.split import sample, without_overlap
from luthier.data.tokens import Tokenizer
from luthier.errors import UserError
from luthier.evaluate.answering import answers_of_both
from luthier.evaluate.base_answers import base_name
from luthier.evaluate.classification import confusion
from luthier.evaluate.examination import Examination, Loaded, Rows
from luthier.evaluate.harness import run_tasks
from luthier.evaluate.likelihood import RowLoss
from luthier.evaluate.losses import compare_losses
from luthier.evaluate.metrics import Metric, make_metrics
from luthier.evaluate.preference import PREFERS, findings, preferred, score_pairs
from luthier.evaluate.probe.forgetting import probe_forgetting
from luthier.evaluate.report.headline import grown
from luthier.evaluate.statistics import mean_interval, paired_test
from luthier.evaluate.store import Store, key_of
from luthier.evaluate.wins import Verdicts, compare_lengths, count_wins, who_is_asked
from luthier.events import Note, OnEvent, ignore
from luthier.files import sha256, write_json, write_jsonl
from luthier.models.tuned import load_tuned
from luthier.recipe import Recipe
from luthier.records import AnsweredRow, Evaluation
from luthier.records.evaluation import (
    AnyCompared,
    Confusion,
    MetricCompared,
    Pair,
    PreferenceFindings,
)
from luthier.run import Run

SAMPLES = 100  # rows that evaluation.json shows; all of them are in evaluation/rows.jsonl


@dataclass(frozen=True)
class Side:
    """What one model did: loss by row, answers, and the score of each by metric.

    ``pairs`` are the losses of chosen and rejected answers, by turns.
    """

    losses: list[RowLoss]
    answers: list[str]
    scores: dict[str, list[float]]
    pairs: list[RowLoss]


def evaluate_run(
    run: Run,
    data: str | None = None,
    on_event: OnEvent = ignore,
    *,
    metrics: Sequence[str] | None = None,
    settings: Mapping[str, Any] | None = None,
    adapter_scale: float = 1.0,
    probe: bool | None = None,
    tasks: Sequence[str] = (),
    tasks_limit: int | None = None,
) -> Evaluation:
    """Compare a finished run with the model it began from, and keep it in ``evaluation.json``.

    Answers are kept in ``evaluation/`` as they are made: an evaluation that is killed resumes
    where it was. Those of the base are kept for other runs, too (``base_answers.py``).

    Args:
        data: file to evaluate on instead of the run's validation rows.
        metrics: names instead of the recipe's.
        settings: values of the recipe's ``evaluate`` group to use instead.
        adapter_scale: of the tuned side, see ``load_tuned``.
        probe: whether to look for forgetting; None: as ``evaluate.probe`` of the recipe says.
        tasks: of lm-eval, and ``tasks_limit`` rows of each, see ``run_tasks``.

    Raises:
        UserError: the run has not finished, there is nothing to evaluate on, or a row, a metric or
            the scale is wrong.
    """
    started = time.perf_counter()
    recipe = run.recipe()
    changes = dict(settings or {})
    if metrics is not None:
        changes["metrics"] = list(metrics)
    if changes:
        recipe = recipe.changed(evaluate=changes)
    rows = choose_rows(run, recipe, data, on_event)
    if recipe.objective.scores:
        return _evaluate_scores(run, rows, started, on_event)
    graded = make_metrics(
        recipe.evaluate.metrics if rows.answered else (),
        recipe.evaluate,
        rows.answered,
        run.grades_path,
    )
    asked = who_is_asked(recipe, run.grades_path)
    training = trained_on(run, on_event)
    _, seen = without_overlap(rows.all, training)
    if seen:
        on_event(
            Note(
                f"{len(seen)} of the {len(rows.all)} rows of {rows.source} are in the training set "
                f"({seen[0].origin} first): the tuned model has seen their answers, so its scores "
                "are optimistic",
                warning=True,
            )
        )
    models = load_tuned(run, adapter_scale, on_event)
    weights = sha256(run.measured_path)  # changes when the run is trained again
    shared = base_name(run, models.tokenizer, on_event)
    names = {
        "base": shared or key_of("base", weights),
        "tuned": key_of("tuned", weights, adapter_scale),
    }
    with run.locked():
        store = Store(run.answers_path)
        examination = Examination(
            run, recipe, rows, models, names, store, shared is not None, on_event
        )
        sides = _measure(examination, graded)
        looks = recipe.evaluate.probe if probe is None else probe
        forgetting = probe_forgetting(examination, training) if looks else None
        harness = run_tasks(examination, tasks, tasks_limit) if tasks else {}
        compared = _compare(sides, graded, rows)
        answers = (sides.base.answers, sides.tuned.answers)
        verdicts = asked.verdicts(rows.answered, *answers, on_event)
        preference = _preference(sides)
        if answers[0] and (verdicts or preference or recipe.objective.learns_from != "answers"):
            longer = grown(compare_lengths(*answers))
            if longer is not None:
                on_event(Note(longer, warning=True))
        answered = _answered_rows(sides, rows, verdicts)
        evaluation = Evaluation(
            data=rows.source,
            rows=len(rows.all),
            seen_in_training=len(seen),
            supervised_tokens=sum(loss.tokens for loss in sides.base.losses),
            answered_rows=len(rows.answered),
            adapter_scale=adapter_scale,
            base={name: found.base.mean for name, found in compared.items()},
            tuned={name: found.tuned.mean for name, found in compared.items()},
            metrics=compared,
            classification=_classification(sides, rows),
            samples=answered[:SAMPLES],
            forgetting=forgetting,
            preference=preference,
            wins=count_wins(verdicts, *answers),
            tasks=harness,
            max_new_tokens=recipe.evaluate.max_new_tokens,
            seconds=round(time.perf_counter() - started, 1),
            when=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        write_jsonl(run.answered_rows_path, (row.to_dict() for row in answered))
        write_json(run.evaluation_path, evaluation.to_dict())
    return evaluation


def _evaluate_scores(run: Run, rows: Rows, started: float, on_event: OnEvent) -> Evaluation:
    """A reward model on held-out pairs: it has no answers, and its base no scores."""
    recipe = run.recipe()
    models = load_tuned(run, on_event=on_event, scores=True)
    pairs = tokenise_pairs(rows.all, recipe.data, models.tokenizer, on_event)
    if not pairs:
        raise UserError(
            f"{rows.source} has no pairs of 'chosen' and 'rejected' within data.max_length, which a "
            "reward model is measured on"
        )
    _, seen = without_overlap(rows.all, trained_on(run, on_event))
    with run.locked():
        found, scored = score_pairs(models.tuned, pairs, on_event)
        evaluation = Evaluation(
            data=rows.source,
            rows=len(rows.all),
            seen_in_training=len(seen),
            supervised_tokens=0,
            answered_rows=0,
            adapter_scale=1.0,
            base={},
            tuned={PREFERS: found.accuracy.mean},
            metrics={},
            classification=None,
            samples=[],
            forgetting=None,
            preference=found,
            max_new_tokens=recipe.evaluate.max_new_tokens,
            seconds=round(time.perf_counter() - started, 1),
            when=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        write_jsonl(run.scored_pairs_path, (pair.to_dict() for pair in scored))
        write_json(run.evaluation_path, evaluation.to_dict())
    return evaluation


def choose_rows(run: Run, recipe: Recipe, data: str | None, on_event: OnEvent = ignore) -> Rows:
    """The rows of ``data``, else the run's held-out ones.

    Raises:
        UserError: there are none, or one is wrong.
    """
    if data is None:
        source, rows = str(run.validation_path), held_out(run, on_event)
        if not rows:
            raise UserError(f"{run.root} has no validation rows; give a file of rows with --data")
    else:
        source, rows = data, read_for_evaluation(data, recipe.data, on_event)
    if recipe.objective.learns_from == "labels":  # a bad answer is no reference
        rows = [row for row in rows if row.extra.get("label") is not False]
        if not rows:
            raise UserError(
                f"no row of {source} has the label true, so there is nothing to compare with"
            )
    spoken = [index for index, row in enumerate(rows) if row.messages]
    asked = sample(spoken, recipe.evaluate.max_rows, recipe.train.seed)
    return Rows(source, rows, [rows[index] for index in asked])


@dataclass(frozen=True)
class _Sides:
    base: Side
    tuned: Side


def _measure(examination: Examination, metrics: Sequence[Metric]) -> _Sides:
    """Loss, answers and scores of base and tuned."""
    rows, settings = examination.rows, examination.recipe.evaluate
    tokenizer, on_event = examination.models.tokenizer, examination.on_event
    pairs = tokenise_pairs(rows.all, examination.recipe.data, tokenizer, on_event)

    def losses(side: str, model: Loaded) -> tuple[list[RowLoss], list[RowLoss]]:
        judged = examination.losses(side, model, pairs, f"pairs by {side}") if pairs else []
        return _losses(examination, side, model), judged

    found = examination.of_both(losses)
    answers = answers_of_both(
        examination,
        [row.prompt for row in rows.answered],
        max_new_tokens=settings.max_new_tokens,
        batch_size=settings.batch_size,
        task="answers of base and tuned",
    )

    def side(of_side: tuple[list[RowLoss], list[RowLoss]], said: list[str]) -> Side:
        scores = {metric.name: metric.scores(said, rows.answered) for metric in metrics}
        return Side(of_side[0], said, scores, of_side[1])

    return _Sides(side(found[0], answers["base"]), side(found[1], answers["tuned"]))


def _losses(examination: Examination, side: str, model: Loaded) -> list[RowLoss]:
    """The loss of each conversation; a text that was cut into several rows is one."""
    rows, data, on_event = examination.rows, examination.recipe.data, examination.on_event
    encoder = Tokenizer(examination.models.tokenizer, data.train_on)
    tokens = tokenise(rows.all, data, encoder, on_event)
    if not tokens:
        raise UserError(f"no row of {rows.source} fits data.max_length {data.max_length}")
    pieces = examination.losses(side, model, tokens, f"loss of {side}")
    whole: dict[int, RowLoss] = {}
    for row, loss in zip(tokens, pieces, strict=True):
        before = whole.get(row.source, RowLoss(0.0, 0))
        whole[row.source] = RowLoss(before.sum + loss.sum, before.tokens + loss.tokens)
    return list(whole.values())


def _compare(sides: _Sides, metrics: Sequence[Metric], rows: Rows) -> dict[str, AnyCompared]:
    """Loss, perplexity and each metric: both sides, and the test of the pair."""
    loss, perplexity = compare_losses(sides.base.losses, sides.tuned.losses)
    compared: dict[str, AnyCompared] = {"loss": loss, "perplexity": perplexity}
    if sides.base.pairs:
        compared[PREFERS] = preferred(sides.base.pairs, sides.tuned.pairs)
    references = [row.reference for row in rows.answered]
    for metric in metrics:
        base, tuned = (side.scores[metric.name] for side in (sides.base, sides.tuned))
        compared[metric.name] = MetricCompared(
            label=metric.label,
            share=metric.share,
            higher_is_better=metric.higher_is_better,
            base=mean_interval(base),
            tuned=mean_interval(tuned),
            test=paired_test(base, tuned, higher_is_better=metric.higher_is_better),
            corpus=None
            if metric.corpus is None
            else Pair(
                base=metric.corpus(sides.base.answers, references),
                tuned=metric.corpus(sides.tuned.answers, references),
            ),
        )
    return compared


def _preference(sides: _Sides) -> PreferenceFindings | None:
    if not sides.base.pairs:
        return None
    answers = (sides.base.answers, sides.tuned.answers)
    return findings(sides.base.pairs, sides.tuned.pairs, answers)


def _classification(sides: _Sides, rows: Rows) -> Pair[Confusion] | None:
    references = [row.reference for row in rows.answered]
    base, tuned = (confusion(side.answers, references) for side in (sides.base, sides.tuned))
    return Pair(base=base, tuned=tuned) if base is not None and tuned is not None else None


def _answered_rows(sides: _Sides, rows: Rows, verdicts: Sequence[Verdicts]) -> list[AnsweredRow]:
    """One record per answered row: prompt, reference, both answers, their scores and who won."""

    def scores(side: Side, index: int) -> dict[str, float]:
        return {name: values[index] for name, values in side.scores.items()}

    return [
        AnsweredRow(
            row=str(row.origin),
            messages=[dict(message) for message in row.prompt],
            reference=row.reference,
            base=sides.base.answers[index],
            tuned=sides.tuned.answers[index],
            scores=Pair(base=scores(sides.base, index), tuned=scores(sides.tuned, index)),
            winner={each.judge: each.winner(index) for each in verdicts} or None,
        )
        for index, row in enumerate(rows.answered)
    ]
