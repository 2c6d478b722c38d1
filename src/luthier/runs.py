"""A run as `luthier train` makes it: with its plan before, and the probe on the way."""

from luthier.evaluate.before_after import evaluate_run
from luthier.evaluate.probe.quick import QuickProbe
from luthier.evaluate.report.page import write_report
from luthier.events import OnEvent, ignore
from luthier.plan.forecast import forecast, refuse_what_cannot_fit
from luthier.recipe import Recipe
from luthier.records import Measured
from luthier.run import Run
from luthier.runtime import world
from luthier.train.fit import fit
from luthier.train.launch import train_apart
from luthier.train.launch_many import train_together
from luthier.trust import consent


def train_run(recipe: Recipe, run: Run, on_event: OnEvent = ignore) -> Measured:
    """``fit`` with a forecast before a new run and, if ``evaluate.probe`` says so, the probe.

    Code that the model ships is saved with the weights: it has the consent that the recipe has.

    Raises:
        UserError, Interrupted: as ``fit``.
    """
    probe = QuickProbe(on_event) if recipe.evaluate.probe else None
    finished = run.finished
    if not run.checkpoints():
        refuse_what_cannot_fit(recipe, on_event)
    try:
        return fit(recipe, run, on_event, probe=probe, forecast=forecast)
    finally:
        if not finished and world().rank == 0:
            consent(recipe.with_absolute_paths(), run.root, to_train=True)


def train_run_apart(recipe: Recipe, run: Run, on_event: OnEvent = ignore) -> Measured:
    """``train_run`` in a process of its own, so that its peak memory is its own."""
    return train_apart(recipe, run, on_event, "luthier.runs:train_run")


def train_run_together(
    recipe: Recipe, run: Run, count: int, on_event: OnEvent = ignore
) -> Measured:
    """``train_run`` in ``count`` processes of this machine that train together."""
    return train_together(recipe, run, count, on_event, "luthier.runs:train_run")


def evaluate_and_report(_recipe: Recipe, run: Run, on_event: OnEvent = ignore) -> None:
    """``evaluate_run`` by the recipe of the run, and its page."""
    evaluate_run(run, None, on_event)
    write_report(run)
