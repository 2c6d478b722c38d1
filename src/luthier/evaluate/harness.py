"""Tasks of EleutherAI's lm-evaluation-harness, put to base and tuned and compared row by row."""

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from luthier.errors import UserError
from luthier.evaluate.examination import Examination, Loaded
from luthier.evaluate.statistics import mean_interval, paired_test
from luthier.events import during
from luthier.extras import need
from luthier.models.adapters import inner
from luthier.records.evaluation import MetricCompared

# (task, metric, filter) -> one score per row
_MOST_ROWS = 16  # at once: it pads them, and keeps the logits of all their tokens
_Scores = dict[tuple[str, str, str], list[float]]


def run_tasks(
    examination: Examination, tasks: Sequence[str], limit: int | None
) -> dict[str, MetricCompared]:
    """Put ``tasks`` to both sides.

    As the harness does by default, prompts are plain text, without a chat template, so that figures
    are those that others publish. Metrics that are not one number per row have no interval and are
    skipped.

    Args:
        tasks: names that the harness knows, or paths of task files (.yaml).
        limit: rows of each task, from its first; None for all.

    Returns:
        By ``task metric``; a ``share`` is what has no score but 0 and 1.

    Raises:
        UserError: the library is not installed, or it cannot run a task (unknown, or its data is
            not at hand).
    """
    need("lm_eval", extra="lm-eval", what="luthier evaluate --lm-eval")
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    for name in tasks:
        if _is_file(name) and not Path(name).is_file():
            raise UserError(f"there is no task file {name}")
    # It warns of what is as it should be here: a model that is loaded already.
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    # Thousands of tasks come with it; to look through them takes seconds.
    manager = TaskManager(include_defaults=not all(map(_stands_alone, tasks)))
    directions: dict[str, dict[str, bool]] = {}

    def put(side: str, model: Loaded) -> _Scores:
        whole = inner(model())
        language_model = HFLM(
            pretrained=whole,
            tokenizer=examination.models.tokenizer,
            device=str(whole.device),
            batch_size=min(_MOST_ROWS, examination.recipe.evaluate.batch_size),
        )
        try:
            with during(f"lm-eval tasks of {side}", examination.on_event):
                found = simple_evaluate(
                    language_model,
                    tasks=list(tasks),
                    limit=limit,
                    bootstrap_iters=0,
                    task_manager=manager,
                )
        except Exception as error:  # tasks are code and data of others: anything may come
            raise UserError(f"lm-eval cannot run {', '.join(tasks)}: {error}") from error
        directions.update(found["higher_is_better"])
        return _scores(found["samples"])

    before, after = examination.of_both(put)
    return {
        label: _compare(label, before[key], after[key], directions[key[0]].get(key[1]) is not False)
        for key, label in ((key, _label(*key)) for key in before)
    }


def _is_file(name: str) -> bool:
    return name.endswith((".yaml", ".yml"))


def _stands_alone(name: str) -> bool:
    """Whether ``name`` is a file with a task, not one with a group, which names other tasks."""
    return _is_file(name) and not re.search(
        "^group:", Path(name).read_text("utf-8", "replace"), re.M
    )


def _scores(samples: dict[str, list[dict[str, Any]]]) -> _Scores:
    columns: _Scores = {}
    odd = set()
    for task, rows in samples.items():
        for row in sorted(rows, key=lambda row: int(row["doc_id"])):
            for metric in row["metrics"]:
                key = (task, metric, row["filter"])
                if isinstance(row[metric], bool | int | float):
                    columns.setdefault(key, []).append(float(row[metric]))
                else:
                    odd.add(key)
    return {key: scores for key, scores in columns.items() if key not in odd}


def _label(task: str, metric: str, chosen: str) -> str:
    return f"{task} {metric}" + ("" if chosen == "none" else f" ({chosen})")


def _compare(
    label: str, base: list[float], tuned: list[float], higher_is_better: bool
) -> MetricCompared:
    return MetricCompared(
        label=label,
        share={*base, *tuned} <= {0.0, 1.0},
        higher_is_better=higher_is_better,
        base=mean_interval(base),
        tuned=mean_interval(tuned),
        test=paired_test(base, tuned, higher_is_better=higher_is_better),
    )
