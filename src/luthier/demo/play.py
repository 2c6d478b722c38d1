"""The demo on a small real model: pull, train, evaluate on databases it never saw."""

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from luthier.api import evaluate, train
from luthier.events import OnEvent, ignore
from luthier.recipe import Recipe, as_recipe
from luthier.records import Evaluation
from luthier.run import Run

TASK = Path(str(files("luthier.demo"))) / "task"


def demo_recipe(**changes: Mapping[str, Any]) -> Recipe:
    """The recipe of the demo, its data found in the installed package, with ``changes`` by group."""
    own = as_recipe(
        TASK.parent / "recipe.yaml",
        data={"train": str(TASK / "train.jsonl")},
        evaluate={"sql_databases": str(TASK / "databases")},
    )
    return own.changed(**changes)


def play(recipe: Recipe, on_event: OnEvent = ignore) -> tuple[Run, Evaluation]:
    """Train (or resume, or find the run finished) and evaluate on databases that training never saw.

    Raises:
        UserError, Interrupted: as ``luthier.train`` and ``luthier.evaluate``.
    """
    run = train(recipe, on_event=on_event)
    return run, evaluate(run, TASK / "test.jsonl", on_event=on_event)
