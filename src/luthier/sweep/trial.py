"""One trial: an ordinary run, watched by Optuna on the way."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from luthier.errors import Interrupted, UserError
from luthier.evaluate.probe.quick import QuickProbe
from luthier.events import Checkpoint, Evaluation, Event, Finished, Note, OnEvent, Started, Step
from luthier.recipe import Recipe
from luthier.recipe.keys import yaml_value
from luthier.records.sweep import Choice, Dimension
from luthier.run import Run, claim_run
from luthier.sweep.asked import Asked
from luthier.sweep.shared import Shared
from luthier.sweep.space import holds, own_value, with_values
from luthier.sweep.study import best_of, present, spent
from luthier.train.fit import fit
from luthier.train.stop import StopRequest

if TYPE_CHECKING:
    from optuna import Study, Trial

_DIGITS = 3  # of a number that is drawn: a recipe is read by people


def suggest(trial: "Trial", dimension: Dimension) -> Any:
    """The value that Optuna proposes for a key, as a recipe takes it."""
    if isinstance(dimension, Choice):
        labels = {yaml_value(choice): choice for choice in dimension.choices}
        return labels[trial.suggest_categorical(dimension.key, list(labels))]
    low, high, log = dimension.low, dimension.high, dimension.log
    if dimension.whole:
        return trial.suggest_int(dimension.key, int(low), int(high), log=log)
    value = float(f"{trial.suggest_float(dimension.key, low, high, log=log):.{_DIGITS}g}")
    return min(max(value, low), high)


def trial_recipe(asked: Asked, values: dict[str, Any], name: str) -> Recipe:
    """The recipe of a trial: what it varies, and its place.

    General questions are asked on the way only where the recipe stops a run by them: they tell
    nothing that chooses among trials, and take as long as a validation.

    Raises:
        UserError: the values do not go together.
    """
    recipe = with_values(asked.recipe, values)
    probe = recipe.evaluate.probe and recipe.train.stop_on_forgetting is not None
    run = {"dir": str(asked.folder.trials_path), "name": name}
    return recipe.changed(run=run, evaluate={"probe": probe}).with_absolute_paths()


class Objective:
    """What Optuna minimises: trains a trial, and returns its lowest validation loss.

    Attributes:
        asked_for: called once the trial is drawn: others may draw theirs.
    """

    def __init__(
        self,
        study: "Study",
        asked: Asked,
        shared: Shared,
        on_event: OnEvent,
        asked_for: Callable[[], None],
    ) -> None:
        self.study, self.asked, self.shared = study, asked, shared
        self.on_event, self.asked_for = on_event, asked_for
        self.number: int | None = None  # of Optuna, of the trial that runs
        self.warned: set[str] = set()

    def __call__(self, trial: "Trial") -> float:
        """Raises TrialPruned where it was pruned or cannot be trained, Interrupted by the user."""
        from optuna.exceptions import TrialPruned

        asked, self.number = self.asked, trial.number
        default = bool(trial.user_attrs.get("default"))
        name = trial.user_attrs.get("folder", f"{trial.number:03}")
        trial.set_user_attr("place", asked.folder.place)
        trial.set_user_attr("folder", name)
        values = self._values(trial, default)
        self.asked_for()
        self.on_event(Note(f"trial {name}: {_told(values) or 'the recipe as it was given'}"))
        watcher: Watcher | None = None
        try:
            recipe = trial_recipe(asked, values, name)
            run = claim_run(recipe, "sweep")
            watcher = Watcher(trial, run, not default, self._left(default), self._tell)
            probe = QuickProbe(watcher) if recipe.evaluate.probe else None
            materials = self.shared.materials(recipe)
            measured = fit(
                recipe, run, watcher, probe=probe, materials=materials, stop=watcher.stop
            )
            loss = measured.best_eval_loss
            if loss is None:
                raise UserError("no evaluation gave a finite validation loss")
        except Interrupted:
            if watcher is None or watcher.why is None:
                raise  # by the user
            trial.set_user_attr("why", watcher.why)
            self.on_event(Note(f"trial {name}: pruned: {watcher.why}"))
            raise TrialPruned from None
        except UserError as error:
            if default:
                raise UserError(
                    f"the recipe cannot be trained as it was given, so there is nothing to compare "
                    f"with: {error}"
                ) from error
            trial.set_user_attr("why", str(error))
            trial.set_user_attr("failed", True)
            self.on_event(Note(f"trial {name} failed: {error}", warning=True))
            raise TrialPruned from None
        before = best_of(present(self.study))
        best = before is None or loss < float(before.value or 0.0)
        self.on_event(
            Note(f"trial {name}: validation loss {loss:.4f}{', the best so far' if best else ''}")
        )
        if default:
            self._foretell(measured.seconds)
        return loss

    def _tell(self, event: Event) -> None:
        """Pass on an event of a trial, but a warning of every trial once."""
        if isinstance(event, Note) and event.warning:
            if event.text in self.warned:
                return
            self.warned.add(event.text)
        self.on_event(event)

    def _foretell(self, seconds: float) -> None:
        """What all trials would take at the pace of the default."""
        hours, price = self.asked.trials * seconds / 3600, self.asked.price_per_hour
        cost = f", {hours * price:.2f} dollars" if price is not None else ""
        self.on_event(
            Note(
                f"the first trial took {seconds / 60:.1f} min: {self.asked.trials} like it take "
                f"{hours:.2f} hours{cost}, less what pruning saves"
            )
        )

    def _values(self, trial: "Trial", default: bool) -> dict[str, Any]:
        if default:  # what of it lies in the space is told to Optuna, which learns from it
            for dimension in self.asked.space:
                if holds(dimension, own_value(self.asked.recipe, dimension.key)):
                    suggest(trial, dimension)
            return {}
        values = {dimension.key: suggest(trial, dimension) for dimension in self.asked.space}
        trial.set_user_attr("values", values)
        return values

    def _left(self, default: bool) -> float | None:
        """Seconds that this trial may take. The default is never cut off: all is held against it."""
        if self.asked.budget_seconds is None or default:
            return None
        return (self.asked.budget_seconds - spent(self.study)) / self.asked.jobs


class Watcher:
    """Tells Optuna each validation loss of a run, and stops the run where it says so.

    Attributes:
        stop: what the run listens to. It is granted with the next checkpoint, a step later at most.
        why: the reason where it was this that stopped it.
    """

    def __init__(
        self,
        trial: "Trial",
        run: Run,
        prunable: bool,
        seconds: float | None,
        on_event: OnEvent,
    ) -> None:
        self.trial, self.run, self.prunable = trial, run, prunable
        self.seconds, self.on_event = seconds, on_event
        self.begun = time.monotonic()
        self.stop = StopRequest()
        self.why: str | None = None
        self.total = self.evaluations = 0
        self.reported: set[int] = set()  # a run may begin again in smaller micro-batches

    def __call__(self, event: Event) -> None:
        if _is_passed_on(event, self.stop.requested):
            self.on_event(event)
        match event:
            case Started():
                self._start(event)
            case Evaluation() if event.line.eval_loss is not None:
                self._evaluated(event.line.step, event.line.eval_loss)
            case Step():
                took = time.monotonic() - self.begun
                if self.seconds is not None and took > self.seconds:
                    self._end("the budget was used up", event.line.step)

    def _start(self, event: Started) -> None:
        """A run that goes on: Optuna is told what it measured before."""
        self.total, self.evaluations = event.total, 0
        for line in self.run.metrics():
            if line.eval_loss is not None and line.step <= event.step:
                self._report(line.eval_loss)

    def _evaluated(self, step: int, loss: float) -> None:
        # By number, not by step: where epochs are varied, runs are compared at the same share of
        # their schedules, as train.eval_steps below 1 measures them.
        self._report(loss)
        self.trial.set_user_attr("seconds", round(time.monotonic() - self.begun, 1))
        if self.prunable and self.trial.should_prune():
            self._end(
                f"its validation loss {loss:.4f} at step {step} of {self.total} is above the median "
                "of finished trials at that point",
                step,
            )

    def _report(self, loss: float) -> None:
        self.evaluations += 1
        if self.evaluations not in self.reported:
            self.reported.add(self.evaluations)
            self.trial.report(loss, self.evaluations)

    def _end(self, why: str, step: int) -> None:
        if step < self.total and self.why is None and not self.stop.requested:
            self.why = why
            self.stop.requested = True


def _is_passed_on(event: Event, stopping: bool) -> bool:
    """What a person sees of a trial: training, warnings, and that it stops."""
    if isinstance(event, Note):
        return event.warning or stopping
    return isinstance(event, Started | Step | Evaluation | Checkpoint | Finished)


def _told(values: dict[str, Any]) -> str:
    return ", ".join(
        f"{key.partition('.')[2]} {yaml_value(value)}" for key, value in values.items()
    )
