"""What all experiment trackers have in common: one tracker run for each run."""

import json
from typing import Any, Protocol

from luthier.events import Evaluation, Event, Finished, Started, Step, Stopped
from luthier.files import write_json
from luthier.recipe import Recipe
from luthier.records import MetricsLine
from luthier.run import Run
from luthier.sinks.scalars import scalars

PROJECT = "luthier"  # the project or experiment, where the user names none


class Client(Protocol):
    """The client of one tracker."""

    def start(self, run: Run, config: dict[str, Any], known: str | None) -> str:
        """Start a run of the tracker, or resume the one that was started as ``known``.

        Args:
            config: the settings of the recipe, by group and key.

        Returns:
            the id by which a later process finds it.
        """
        ...

    def log(self, figures: dict[str, float], step: int) -> None:
        """Log what was measured at ``step``."""
        ...

    def end(self, results: dict[str, float] | None, stopped: Stopped | None) -> None:
        """The run is over: ``results`` of a finished one, else why it ``stopped``."""
        ...


class Tracker:
    """Sends a run's figures to a tracker: the recipe as configuration, steps and evaluations.

    A resumed run resumes the tracker's run too, and figures that a killed process had sent
    after its last checkpoint are not sent again.
    """

    def __init__(self, name: str, client: Client, recipe: Recipe, run: Run) -> None:
        self.name = name
        self.client = client
        self.recipe = recipe
        self.run = run
        # Before metrics.jsonl forgets what comes after the checkpoint.
        self.sent: dict[type[Event], int] = {}
        if run.checkpoints():
            self.sent = _last_steps(run.metrics())
        self.begun = False  # whether the tracker has a run open
        self.results: dict[str, float] | None = None
        self.stopped: Stopped | None = None

    def __call__(self, event: Event) -> None:
        match event:
            case Started(step=step) if not self.begun:
                self._start(new=step == 0)
            case Step() | Evaluation() if self.begun:
                # A session that ran out of memory begins again, too.
                if event.line.step > self.sent.get(type(event), -1):
                    self.client.log(scalars(event), event.line.step)
                    self.sent[type(event)] = event.line.step
            case Finished(measured=measured):
                numbers = measured.to_dict()
                self.results = {
                    name: value
                    for name, value in numbers.items()
                    if isinstance(value, int | float) and not isinstance(value, bool)
                }
            case Stopped():
                self.stopped = event

    def close(self) -> None:
        """Send what is left and end the tracker's run."""
        if self.begun:
            self.begun = False
            self.client.end(self.results, self.stopped)

    def _start(self, new: bool) -> None:
        known = {} if new else _known(self.run)
        if self.name not in known:
            self.sent = {}
        found = self.client.start(self.run, self.recipe.settings(), known.get(self.name))
        self.begun = True
        if known.get(self.name) != found:
            write_json(self.run.trackers_path, {**_known(self.run), self.name: found})


def _known(run: Run) -> dict[str, str]:
    """The tracker runs that this run was started as, by the tracker's name."""
    if not run.trackers_path.is_file():
        return {}
    found: dict[str, str] = json.loads(run.trackers_path.read_text("utf-8"))
    return found


def _last_steps(lines: list[MetricsLine]) -> dict[type[Event], int]:
    """The last step of training steps and of evaluations among ``lines``."""
    found: dict[type[Event], int] = {}
    for line in lines:
        figures = line.to_dict()
        kind = Evaluation if any(name.startswith("eval_") for name in figures) else Step
        found[kind] = line.step
    return found
