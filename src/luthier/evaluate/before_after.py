"""Base against tuned on rows neither was trained on: loss, perplexity, answers."""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from luthier.data.conversation import Conversation
from luthier.data.prepare import also_trained_on, held_out, read_for_evaluation, tokenise
from luthier.data.split import sample
from luthier.data.tokens import Tokenizer
from luthier.errors import UserError
from luthier.evaluate.metrics import make_metrics
from luthier.files import write_json
from luthier.generate.answer import Model, Sampling, answer_all
from luthier.kernels.loss import mean_loss, rows_stay_apart
from luthier.models.tuned import TunedModel, load_tuned
from luthier.recipe import Recipe
from luthier.run import Run

log = logging.getLogger(__name__)

OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class _Rows:
    """What is evaluated: all rows for the loss, a sample of them for answers."""

    source: str
    all: list[Conversation]
    answered: list[Conversation]


def evaluate_run(
    run: Run, data: str | None = None, on_progress: OnProgress = lambda *_: None
) -> dict[str, Any]:
    """Compare a finished run with the model it began from, and keep it in ``evaluation.json``.

    Args:
        data: file to evaluate on instead of the run's validation rows.
        on_progress: called with what is being done, how much is done, and of how much.

    Returns:
        ``base`` and ``tuned`` each with ``loss`` (nats a supervised token), ``perplexity`` and the
        mean of each metric; ``samples`` with the answers of both side by side.

    Raises:
        UserError: the run has not finished, there is nothing to evaluate on, or a row is wrong.
    """
    started = time.perf_counter()
    recipe = run.recipe()
    rows = _choose_rows(run, recipe, data)
    models = load_tuned(run)
    sides: dict[str, dict[str, Any]] = {}
    answers: dict[str, list[str]] = {}
    with models.as_base() as base:
        sides["base"], answers["base"] = _measure("base", base, models, recipe, rows, on_progress)
    sides["tuned"], answers["tuned"] = _measure(
        "tuned", models.tuned, models, recipe, rows, on_progress
    )
    supervised = sides["base"].pop("supervised_tokens")
    sides["tuned"].pop("supervised_tokens")
    evaluation = {
        "data": rows.source,
        "rows": len(rows.all),
        "supervised_tokens": supervised,
        "answered_rows": len(rows.answered),
        **sides,
        "samples": [
            {
                "row": str(row.origin),
                "messages": list(row.prompt),
                "reference": row.reference,
                "base": base_answer,
                "tuned": tuned_answer,
            }
            for row, base_answer, tuned_answer in zip(
                rows.answered, answers["base"], answers["tuned"], strict=True
            )
        ],
        "max_new_tokens": recipe.evaluate.max_new_tokens,
        "seconds": round(time.perf_counter() - started, 1),
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_json(run.evaluation_path, evaluation)
    return evaluation


def _choose_rows(run: Run, recipe: Recipe, data: str | None) -> _Rows:
    if data is None:
        source, rows = str(run.validation_path), held_out(run)
        if not rows:
            raise UserError(f"{run.root} has no validation rows; give a file of rows with --data")
    else:
        source, rows = data, read_for_evaluation(data, recipe.data)
        seen = also_trained_on(run, rows)
        if seen:
            log.warning(
                "%d of the %d rows of %s were trained on (%s first): the tuned model has seen their "
                "answers, so its figures are too good",
                len(seen), len(rows), data, seen[0].origin,
            )  # fmt: skip
    spoken = [row for row in rows if row.messages]
    return _Rows(source, rows, sample(spoken, recipe.evaluate.max_rows, recipe.train.seed))


def _measure(
    name: str,
    model: Model,
    models: TunedModel,
    recipe: Recipe,
    rows: _Rows,
    on_progress: OnProgress,
) -> tuple[dict[str, Any], list[str]]:
    on_progress(f"loss of {name}", 0, 1)
    encoder = Tokenizer(models.tokenizer, recipe.data.train_on)
    tokens = tokenise(rows.all, recipe.data, encoder)
    if not tokens:
        raise UserError(f"no row of {rows.source} fits data.max_length {recipe.data.max_length}")
    loss, supervised = mean_loss(
        model, tokens, recipe.train.per_device_eval_batch_size, packed=rows_stay_apart(model)
    )
    on_progress(f"loss of {name}", 1, 1)
    result: dict[str, Any] = {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700)),
        "supervised_tokens": supervised,
    }
    done = 0

    def answered(count: int) -> None:
        nonlocal done
        done += count
        on_progress(f"answers of {name}", done, len(rows.answered))

    answers = answer_all(
        model,
        models.tokenizer,
        [row.prompt for row in rows.answered],
        Sampling(max_new_tokens=recipe.evaluate.max_new_tokens),
        recipe.evaluate.batch_size,
        answered,
    )
    if answers:
        metrics = make_metrics(recipe.evaluate.metrics, recipe.evaluate.sql_databases)
        for metric, score in metrics.items():
            scores = [score(a, row) for a, row in zip(answers, rows.answered, strict=True)]
            result[metric] = sum(scores) / len(scores)
    return result, answers
