"""The whole path on a real small model: pull, train, evaluate on databases it never saw."""

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from luthier.evaluate.before_after import evaluate_run
from luthier.events import OnEvent, ignore
from luthier.recipe import Recipe, as_recipe
from luthier.records import Evaluation, Measured
from luthier.run import claim_run
from luthier.train.fit import fit

TASK = Path(str(files("luthier.demo"))) / "task"


def demo_recipe(**changes: Mapping[str, Any]) -> Recipe:
    """The recipe of the demo, its data found in the installed package, with ``changes`` by group."""
    own = as_recipe(
        TASK.parent / "recipe.yaml",
        data={"train": str(TASK / "train.jsonl")},
        evaluate={"sql_databases": str(TASK / "databases")},
    )
    return own.changed(**changes)


def play(recipe: Recipe, on_event: OnEvent = ignore) -> tuple[Path, Measured, Evaluation]:
    """Train (or go on, or find it done) and evaluate: the run folder and both results.

    Raises:
        UserError, Interrupted: as ``fit`` and ``evaluate_run``.
    """
    run = claim_run(recipe, "demo")
    measured = fit(recipe, run, on_event)
    return run.root, measured, evaluate_run(run, str(TASK / "test.jsonl"), on_event)
