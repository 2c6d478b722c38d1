"""Events shown to a person: bars that change in place in a terminal, lines in a pipe."""

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from luthier.cli.app import err
from luthier.cli.progress import Training, Work, duration
from luthier.events import (
    Checkpoint,
    Evaluation,
    Event,
    Finished,
    Note,
    OnEvent,
    Progress,
    Started,
    Step,
)

_BAR_AFTER = 0.3  # seconds; work that is over sooner has no bar
_LINE_AFTER = 2.0  # seconds; work that is over sooner has no line in a pipe
_LINE_EVERY = 5.0  # seconds between lines about the same work, at least,
_LINE_SHARE = 0.1  # and this share of the time that it has taken
_TRAINING_LINES = 20  # in a pipe, about this many lines per run
_BAR_WIDTH = 24

_open: dict[Console, OnEvent] = {}


@contextmanager
def terminal(console: Console = err) -> Iterator[OnEvent]:
    """A listener that shows events on ``console`` until the block ends.

    Inside another such block of the same console it is that block's listener.
    """
    if console in _open:
        yield _open[console]
        return
    live = console.is_terminal and not console.is_dumb_terminal
    sink = _Live(console) if live else _Plain(console)
    _open[console] = sink
    try:
        yield sink
    finally:
        del _open[console]
        sink.close()


class _Sink(ABC):
    """What both displays share: the work in progress, and notes."""

    name = "the terminal"

    def __init__(self, console: Console) -> None:
        self.console = console
        self.works: dict[str, Work] = {}  # unfinished work, in the order it began
        self.training: Training | None = None
        self.closed = False

    def __call__(self, event: Event) -> None:
        if self.closed:  # a generator that is closed late reports the end of its work
            return
        match event:
            case Note():
                self.note(event)
            case Progress():
                self.progress(event)
            case Started():
                self.end_training()
                self.training = Training(event.step, event.total)
                self.training_began()
            case Step() | Evaluation() if self.training is not None:
                self.training.take(event.line)
                self.training_went_on(self.training, isinstance(event, Evaluation))
            case Checkpoint() if self.training is not None:
                self.training.saved = event.step
            case Finished():
                self.end_training()

    def note(self, note: Note) -> None:
        text = Text(note.text, style="" if note.warning else "dim")
        if note.warning:
            text = Text.assemble(("warning: ", "yellow"), text)
        self.console.print(text, soft_wrap=True)

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    @abstractmethod
    def progress(self, event: Progress) -> None:
        """Some work began, went on or is over."""

    @abstractmethod
    def training_began(self) -> None:
        """``self.training`` has begun."""

    @abstractmethod
    def training_went_on(self, training: Training, evaluated: bool) -> None:
        """There are new figures."""

    def end_training(self) -> None:
        """The run that was shown is over, or another begins."""
        self.training = None

    def close(self) -> None:
        self.closed = True


class _Live(_Sink):
    """Bars under the printed lines; they disappear when the work is over.

    The display is drawn by a thread of Rich's, from what this one keeps.
    """

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self.training_begun = 0.0
        # Results are printed to stdout and must not go through this display.
        self.live = Live(
            console=console,
            get_renderable=self._drawn,
            refresh_per_second=8,
            transient=True,
            redirect_stdout=False,
        )

    def progress(self, event: Progress) -> None:
        now = monotonic()
        if event.finished:
            self.works.pop(event.task, None)
        elif event.task in self.works:
            self.works[event.task].take(event, now)
        else:
            self.works[event.task] = Work(event, now)
            self._show()

    def training_began(self) -> None:
        self.training_begun = monotonic()
        self._show()

    def training_went_on(self, training: Training, evaluated: bool) -> None:
        """The next drawing shows them."""

    def end_training(self) -> None:
        ended = self.training
        super().end_training()
        if ended is not None:
            self.say(ended.last_line())

    def close(self) -> None:
        try:
            self.live.stop()
            self.end_training()
        finally:
            super().close()

    def _show(self) -> None:
        if not self.live.is_started:  # not before: a short command shows no display
            self.live.start()

    def _drawn(self) -> RenderableType:
        now = monotonic()
        table = Table.grid(padding=(0, 1))
        for _ in range(3):
            table.add_column(no_wrap=True, overflow="ellipsis")
        training = self.training
        if training is not None:
            seconds = now - self.training_begun
            table.add_row(
                "training",
                ProgressBar(training.total, training.step, _BAR_WIDTH),
                f"{training.step}/{training.total}  {training.shown_figures()}  "
                f"{duration(seconds)}  ETA {training.eta()}",
            )
        for work in [w for w in list(self.works.values()) if now - w.begun >= _BAR_AFTER]:
            event = work.event
            table.add_row(
                Text(event.task),
                ProgressBar(
                    event.total or 100,
                    event.done,
                    _BAR_WIDTH,
                    pulse=event.total is None,
                    animation_time=now,
                ),
                "  ".join([*work.how_far(), duration(now - work.begun)]),
            )
        return Group(table) if table.row_count else Group()


class _Plain(_Sink):
    """A few complete lines, for logs and pipes.

    A thread looks after work that says nothing for long, such as loading a model.
    """

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self.said: dict[str, float] = {}  # when each work had its last line
        self.latest = ""  # the work that said something last
        self.last_step = 0  # of the last line about training
        self.lock = threading.RLock()  # a signal's handler may bring a note at any time
        self.over = threading.Event()
        self.watcher: threading.Thread | None = None

    def __call__(self, event: Event) -> None:
        with self.lock:
            super().__call__(event)

    def progress(self, event: Progress) -> None:
        now = monotonic()
        task = event.task
        work = self.works.get(task)
        if event.finished:
            if work is not None and task in self.said:
                work.take(event, now)
                self.say(work.last_line(now))
            self.works.pop(task, None)
            self.said.pop(task, None)
            return
        if work is None:
            self.works[task] = Work(event, now)
        else:
            work.take(event, now)
        self.latest = task
        self._say_if_due(task, now)
        if self.watcher is None:
            self.watcher = threading.Thread(target=self._watch, daemon=True)
            self.watcher.start()

    def _watch(self) -> None:
        while not self.over.wait(0.5):
            with self.lock:
                if self.latest in self.works:
                    self._say_if_due(self.latest, monotonic())

    def _say_if_due(self, task: str, now: float) -> None:
        work = self.works[task]
        since, least = now - work.begun, _LINE_AFTER
        if task in self.said:
            least = max(_LINE_EVERY, _LINE_SHARE * since)
            since = now - self.said[task]
        if since >= least:
            self.said[task] = now
            self.say(work.line(now))

    def training_began(self) -> None:
        assert self.training is not None
        self.last_step = self.training.step

    def training_went_on(self, training: Training, evaluated: bool) -> None:
        every = max(1, training.total // _TRAINING_LINES)
        first = training.pace.first is not None and training.pace.first[1] == training.step
        last = training.step == training.total
        if evaluated or first or last or training.step - self.last_step >= every:
            self.last_step = training.step
            self.say(training.line())

    def close(self) -> None:
        with self.lock:
            super().close()
        self.over.set()
        if self.watcher is not None:
            self.watcher.join()
