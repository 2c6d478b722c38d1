"""One typed stream of what happens: in a training run, and in any other long work.

Who does the work calls ``on_event`` once for each thing that happens; terminals, files and trackers
are sinks that listen (``Stream``). There is no other channel for messages.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from luthier.records import Measured, MetricsLine

T = TypeVar("T")

_PROGRESS_EVERY = 0.1  # seconds between two events of the same work


@dataclass(frozen=True, slots=True)
class Note:
    """Something worth reading; a ``warning`` is what the user should look into."""

    text: str
    warning: bool = False

    def __str__(self) -> str:
        return f"warning: {self.text}" if self.warning else self.text


@dataclass(frozen=True, slots=True)
class Progress:
    """How far some work is: ``done`` of ``total`` (None where unknown) ``unit``.

    Work that cannot be counted has no unit. The last event of any work is ``finished``, also where
    the work was cut short.
    """

    task: str
    done: int
    total: int | None = None
    unit: str = ""

    @property
    def finished(self) -> bool:
        return self.total is not None and self.done >= self.total

    def __str__(self) -> str:
        if not self.unit:
            return f"{self.task}: {'done' if self.finished else '…'}"
        of = "" if self.total is None else f" of {self.total:,}"
        return f"{self.task}: {self.done:,}{of} {self.unit}"


@dataclass(frozen=True, slots=True)
class Started:
    """Training starts or resumes after ``step`` of ``total`` steps."""

    step: int
    total: int

    def __str__(self) -> str:
        return f"training from step {self.step} of {self.total}"


@dataclass(frozen=True, slots=True)
class Step:
    """Training steps since the last of these were taken."""

    line: MetricsLine

    def __str__(self) -> str:
        return _figures(self.line)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The model was measured on the validation rows, and by the probe where one is asked."""

    line: MetricsLine

    def __str__(self) -> str:
        return _figures(self.line)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint was written; ``best`` if no earlier one has a lower validation loss."""

    step: int
    path: Path
    best: bool = False

    def __str__(self) -> str:
        return (
            f"checkpoint of step {self.step}{', the best so far' if self.best else ''}: {self.path}"
        )


@dataclass(frozen=True, slots=True)
class Finished:
    """The run is over, its weights are where other libraries find them."""

    measured: Measured

    def __str__(self) -> str:
        return f"finished: the weights of step {self.measured.best_step} of {self.measured.steps} are kept"


def _figures(line: MetricsLine) -> str:
    shown = {k: v for k, v in line.to_dict().items() if k not in ("step", "epoch", "seconds")}
    return f"step {line.step}: " + ", ".join(f"{name} {value:.6g}" for name, value in shown.items())


@dataclass(frozen=True, slots=True)
class Stopped:
    """The run ended before it was finished, for this ``reason``; ``interrupted`` by its user."""

    reason: str
    interrupted: bool = False

    def __str__(self) -> str:
        return self.reason if self.interrupted else f"ended by an error: {self.reason}"


Event = Note | Progress | Started | Step | Evaluation | Checkpoint | Finished | Stopped
OnEvent = Callable[[Event], None]


def ignore(_event: Event) -> None:
    """A listener that does nothing."""


@dataclass
class Stream:
    """Hands each event to every sink. A sink that fails is reported once to the others, and the work
    continues; it is called again with the next event."""

    sinks: list[OnEvent]
    _failed: set[int] = field(default_factory=set)

    def __call__(self, event: Event) -> None:
        for sink in list(self.sinks):
            try:
                sink(event)
            except Exception as error:
                self._tell(sink, error)

    def close(self, sink: OnEvent) -> None:
        """Hand it no more events, and call its ``close`` where it has one.

        A failure is reported to the others, even if the sink failed before: its output may be
        incomplete.
        """
        self.sinks.remove(sink)
        close = getattr(sink, "close", None)
        if close is None:
            return
        try:
            close()
        except Exception as error:
            self(_failure(sink, "could not be closed", error))

    def _tell(self, sink: OnEvent, error: Exception) -> None:
        if id(sink) in self._failed:
            return
        self._failed.add(id(sink))
        self(_failure(sink, "failed", error))


def _failure(sink: OnEvent, what: str, error: Exception) -> Note:
    name = getattr(sink, "name", getattr(sink, "__name__", type(sink).__name__))
    return Note(f"{name} {what} ({type(error).__name__}: {error}); the run continues", warning=True)


def tracked(
    items: Iterable[T],
    task: str,
    on_event: OnEvent,
    total: int | None = None,
    unit: str = "rows",
    size: Callable[[T], int] = lambda _item: 1,
) -> Iterator[T]:
    """``items`` one by one, with ``Progress`` events on the way: first, last, and some between.

    ``size`` says how many units an item is. Who stops taking items ends the work, too.
    """
    done, said = 0, 0.0
    on_event(Progress(task, 0, total, unit))
    try:
        for item in items:
            yield item
            done += size(item)
            now = time.monotonic()
            if now - said >= _PROGRESS_EVERY:
                said = now
                on_event(Progress(task, done, total, unit))
    finally:
        on_event(Progress(task, done, done, unit))


@contextmanager
def during(task: str, on_event: OnEvent) -> Iterator[None]:
    """``Progress`` of work in one piece, without intermediate progress: one event at the start and one at the end."""
    on_event(Progress(task, 0))
    try:
        yield
    finally:
        on_event(Progress(task, 1, 1))
