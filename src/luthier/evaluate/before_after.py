"""Base against tuned on rows neither was trained on: loss, perplexity, answers, and how sure."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from luthier.data.conversation import Conversation
from luthier.data.prepare import (
    held_out,
    read_for_evaluation,
    tokenise,
    trained_on,
)
from luthier.data.split import sample, without_overlap
from luthier.data.tokens import Tokenizer
from luthier.errors import UserError
from luthier.evaluate.answering import answer_kept
from luthier.evaluate.classification import confusion
from luthier.evaluate.harness import run_tasks
from luthier.evaluate.likelihood import RowLoss, row_losses
from luthier.evaluate.metrics import Metric, make_metrics
from luthier.evaluate.perplexity import loss_and_perplexity
from luthier.evaluate.probe.forgetting import probe_forgetting
from luthier.evaluate.statistics import mean_interval, paired_test
from luthier.evaluate.store import Store, key_of
from luthier.events import Note, OnEvent, ignore
from luthier.files import sha256, write_json, write_jsonl
from luthier.generate.answer import Model
from luthier.kernels.separation import rows_stay_apart
from luthier.models.tuned import TunedModel, load_tuned
from luthier.recipe import Recipe
from luthier.run import Run

SIDES = ("base", "tuned")
SAMPLES = 100  # rows that evaluation.json shows; all of them are in evaluation/rows.jsonl


@dataclass(frozen=True)
class Rows:
    """What is evaluated: all rows for the loss, a sample of them for answers."""

    source: str
    all: list[Conversation]
    answered: list[Conversation]


@dataclass(frozen=True)
class Side:
    """What one model did: loss by row, answers, and the score of each by metric."""

    losses: list[RowLoss]
    answers: list[str]
    scores: dict[str, list[float]]


def evaluate_run(
    run: Run,
    data: str | None = None,
    on_event: OnEvent = ignore,
    *,
    metrics: Sequence[str] | None = None,
    adapter_scale: float = 1.0,
    probe: bool | None = None,
    tasks: Sequence[str] = (),
    tasks_limit: int | None = None,
) -> dict[str, Any]:
    """Compare a finished run with the model it began from, and keep it in ``evaluation.json``.

    Answers are kept in ``evaluation/`` as they are made: an evaluation that is killed goes on
    where it was.

    Args:
        data: file to evaluate on instead of the run's validation rows.
        metrics: names instead of the recipe's.
        adapter_scale: of the tuned side, see ``load_tuned``.
        probe: whether to look for forgetting; None: as ``evaluate.probe`` of the recipe says.
        tasks: of lm-eval, and ``tasks_limit`` rows of each, see ``run_tasks``.

    Returns:
        ``base`` and ``tuned`` each with ``loss`` (nats a supervised token), ``perplexity`` and the
        mean of each metric; ``metrics`` with the interval of each side and the paired test;
        ``classification`` with the confusion matrix of each side where the references are labels;
        ``forgetting`` with the probe's verdict, or None; ``tasks`` with those of lm-eval;
        ``seen_in_training``, how many rows' prompts the run learned from; ``samples`` with the
        answers of both side by side.

    Raises:
        UserError: the run has not finished, there is nothing to evaluate on, or a row, a metric or
            the scale is wrong.
    """
    started = time.perf_counter()
    recipe = run.recipe()
    if metrics is not None:
        recipe = recipe.changed(evaluate={"metrics": list(metrics)})
    rows = choose_rows(run, recipe, data, on_event)
    graded = make_metrics(
        recipe.evaluate.metrics if rows.answered else (),
        recipe.evaluate,
        rows.answered,
        run.evaluation_folder / "judge.jsonl",
    )
    training = trained_on(run, on_event)
    _, seen = without_overlap(rows.all, training)
    if seen:
        on_event(
            Note(
                f"{len(seen)} of the {len(rows.all)} rows of {rows.source} were trained on "
                f"({seen[0].origin} first): the tuned model has seen their answers, so its figures "
                "are too good",
                warning=True,
            )
        )
    models = load_tuned(run, adapter_scale, on_event)
    weights = sha256(run.measured_path)  # other after the run was trained anew
    names = {"base": key_of("base", weights), "tuned": key_of("tuned", weights, adapter_scale)}
    with run.locked():
        store = Store(run.evaluation_folder / "answers.jsonl")
        sides = measure_sides(models, recipe, rows, graded, store, names, on_event)
        forgetting = None
        if recipe.evaluate.probe if probe is None else probe:
            forgetting = probe_forgetting(run, models, recipe, training, store, names, on_event)
            write_jsonl(run.evaluation_folder / "probe.jsonl", forgetting.pop("answers"))
        harness = {}
        if tasks:
            harness = run_tasks(
                models,
                tasks,
                limit=tasks_limit,
                batch_size=recipe.evaluate.batch_size,
                on_event=on_event,
            )
        evaluation = {
            "data": rows.source,
            "rows": len(rows.all),
            "seen_in_training": len(seen),
            "supervised_tokens": sum(loss.tokens for loss in sides["base"].losses),
            "answered_rows": len(rows.answered),
            "adapter_scale": adapter_scale,
            **compare_sides(sides, graded, rows),
            "forgetting": forgetting,
            "tasks": harness,
            "max_new_tokens": recipe.evaluate.max_new_tokens,
            "seconds": round(time.perf_counter() - started, 1),
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        write_jsonl(run.evaluation_folder / "rows.jsonl", row_records(sides, rows))
        write_json(run.evaluation_path, evaluation)
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
    spoken = [row for row in rows if row.messages]
    return Rows(source, rows, sample(spoken, recipe.evaluate.max_rows, recipe.train.seed))


def measure_sides(
    models: TunedModel,
    recipe: Recipe,
    rows: Rows,
    metrics: Sequence[Metric],
    store: Store,
    names: dict[str, str],
    on_event: OnEvent,
) -> dict[str, Side]:
    """Loss, answers and scores of base and tuned; ``store`` and ``names`` as for ``answer_kept``."""

    def measure(side: str, model: Model) -> Side:
        losses = _losses(side, model, models, recipe, rows, on_event)
        answers = answer_kept(
            model,
            models.tokenizer,
            [row.prompt for row in rows.answered],
            store=store,
            side=names[side],
            max_new_tokens=recipe.evaluate.max_new_tokens,
            batch_size=recipe.evaluate.batch_size,
            task=f"answers of {side}",
            on_event=on_event,
        )
        scores = {metric.name: metric.scores(answers, rows.answered) for metric in metrics}
        return Side(losses, answers, scores)

    with models.as_base() as base:
        sides = {"base": measure("base", base)}
    return {**sides, "tuned": measure("tuned", models.tuned)}


def _losses(
    side: str,
    model: Model,
    models: TunedModel,
    recipe: Recipe,
    rows: Rows,
    on_event: OnEvent,
) -> list[RowLoss]:
    """The loss of each conversation; a text that was cut into several rows is one."""
    encoder = Tokenizer(models.tokenizer, recipe.data.train_on)
    tokens = tokenise(rows.all, recipe.data, encoder, on_event)
    if not tokens:
        raise UserError(f"no row of {rows.source} fits data.max_length {recipe.data.max_length}")
    packed = rows_stay_apart(model)
    pieces = row_losses(model, tokens, packed=packed, task=f"loss of {side}", on_event=on_event)
    whole: dict[int, RowLoss] = {}
    for row, loss in zip(tokens, pieces, strict=True):
        before = whole.get(id(row.conversation), RowLoss(0.0, 0))
        whole[id(row.conversation)] = RowLoss(before.sum + loss.sum, before.tokens + loss.tokens)
    return list(whole.values())


def compare_sides(sides: dict[str, Side], metrics: Sequence[Metric], rows: Rows) -> dict[str, Any]:
    """The comparison part of ``evaluation.json``."""
    means: dict[str, dict[str, Any]] = {side: {} for side in SIDES}
    compared: dict[str, Any] = {}
    compared["loss"], compared["perplexity"] = loss_and_perplexity(
        sides["base"].losses, sides["tuned"].losses
    )
    references = [row.reference for row in rows.answered]
    for metric in metrics:
        scores = {side: sides[side].scores[metric.name] for side in SIDES}
        entry: dict[str, Any] = {
            "label": metric.label,
            "share": metric.share,
            "higher_is_better": metric.higher_is_better,
            **{side: mean_interval(scores[side]).to_json() for side in SIDES},
            "test": paired_test(
                scores["base"], scores["tuned"], higher_is_better=metric.higher_is_better
            ).to_json(),
        }
        if metric.corpus is not None:
            entry["corpus"] = {s: metric.corpus(sides[s].answers, references) for s in SIDES}
        compared[metric.name] = entry
    for side in SIDES:
        means[side] = {name: entry[side]["mean"] for name, entry in compared.items()}
    labels = {side: confusion(sides[side].answers, references) for side in SIDES}
    return {
        **means,
        "metrics": compared,
        "classification": {s: found.to_json() for s, found in labels.items() if found} or None,
        "samples": list(row_records(sides, rows))[:SAMPLES],
    }


def row_records(sides: dict[str, Side], rows: Rows) -> list[dict[str, Any]]:
    """One object an answered row: prompt, reference, both answers and their scores."""
    return [
        {
            "row": str(row.origin),
            "messages": list(row.prompt),
            "reference": row.reference,
            **{side: sides[side].answers[index] for side in SIDES},
            "scores": {
                side: {name: scores[index] for name, scores in sides[side].scores.items()}
                for side in SIDES
            },
        }
        for index, row in enumerate(rows.answered)
    ]
