"""The demo on a small real model: pull, train, evaluate on databases it never saw."""

import time
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from luthier.api import evaluate, train
from luthier.events import Event, Finished, OnEvent, Progress, Started, ignore
from luthier.recipe import Recipe, as_recipe
from luthier.records import Evaluation
from luthier.run import Run

_PARTS = ("loss of", "answers of")  # tasks of an evaluation that are worth their own line
TASK = Path(str(files("luthier.demo"))) / "task"


def demo_recipe(**changes: Mapping[str, Any]) -> Recipe:
    """The recipe of the demo, its data found in the installed package, with ``changes`` by group."""
    own = as_recipe(
        TASK.parent / "recipe.yaml",
        data={"train": str(TASK / "train.jsonl")},
        evaluate={"sql_databases": str(TASK / "databases")},
    )
    return own.changed(**changes)


def play(recipe: Recipe, on_event: OnEvent = ignore) -> tuple[Run, Evaluation, Mapping[str, float]]:
    """Train (or resume, or find the run finished) and evaluate on databases that training never saw.

    Returns:
        The run, its evaluation, and the seconds of this call by part; they add up to all of it.

    Raises:
        UserError, Interrupted: as ``luthier.train`` and ``luthier.evaluate``.
    """
    clock = _Clock(on_event)
    run = train(recipe, on_event=clock)
    evaluation = evaluate(run, TASK / "test.jsonl", on_event=clock)
    return run, evaluation, clock.parts()


class _Clock:
    """A listener that passes events on, and knows which part of the work they belong to."""

    def __init__(self, on_event: OnEvent) -> None:
        self._on_event = on_event
        self._since = time.perf_counter()
        self._part = self._between = "getting the model, tokenising, planning"
        self._seconds: dict[str, float] = {}

    def __call__(self, event: Event) -> None:
        if isinstance(event, Started | Finished):
            begun = isinstance(event, Started)
            self._between = "training" if begun else "loading, scoring, reporting"
            self._turn(self._between)
        elif isinstance(event, Progress) and event.task.startswith(_PARTS):
            self._turn(self._between if event.finished else event.task)
        self._on_event(event)

    def _turn(self, part: str) -> None:
        now = time.perf_counter()
        before = self._seconds.get(self._part, 0.0)
        self._seconds[self._part] = before + now - self._since
        self._part, self._since = part, now

    def parts(self) -> dict[str, float]:
        self._turn(self._part)
        return self._seconds
