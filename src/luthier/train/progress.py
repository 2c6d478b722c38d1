"""Progress of a run: a live line in a terminal, plain lines in a pipe."""

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from luthier.train.callbacks import Display
from luthier.train.runlog import run_log

_PLAIN_LINES = 20  # in a pipe: about so many lines a run


def make_display(console: Console) -> Display:
    """The display that fits where ``console`` writes."""
    return LiveDisplay(console) if console.is_terminal else PlainDisplay(console)


class _State:
    """What both displays know of the run so far."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.step = self.total = self.first = 0
        self.numbers: dict[str, float] = {}
        self.first_seconds = 0.0

    def begin(self, step: int, total: int) -> None:
        self.step = self.first = step
        self.total = total

    def note(self, text: str) -> None:
        run_log.info(text)
        self.console.print(text, style="dim", highlight=False, markup=False, soft_wrap=True)

    def _take(self, line: dict[str, Any]) -> None:
        if not self.numbers:
            self.first_seconds, self.first = line["seconds"], line["step"]
        self.step = line["step"]
        self.numbers |= line
        run_log.info(f"step {self.step}/{self.total}  {self._figures()}")

    def _eta(self) -> str:
        done = self.step - self.first
        if done <= 0 or not self.numbers:
            return "–:––"
        pace = (self.numbers["seconds"] - self.first_seconds) / done
        return duration(pace * (self.total - self.step))

    def _figures(self) -> str:
        formats = {
            "loss": "loss {:.3f}",
            "eval_loss": "val {:.3f}",
            "eval_probe_accuracy": "probe {:.0%}",
            "tokens_per_second": "{:,.0f} tok/s",
        }
        parts = [
            form.format(self.numbers[key]) for key, form in formats.items() if key in self.numbers
        ]
        if "memory_bytes" in self.numbers:
            parts.append(f"{self.numbers['memory_bytes'] / 2**30:.1f} GiB")
        return "  ".join(parts)


class LiveDisplay(_State):
    """One line that changes in place."""

    def begin(self, step: int, total: int) -> None:
        super().begin(step, total)
        self.progress = Progress(
            TextColumn("training"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            TextColumn("ETA {task.fields[eta]}"),
            console=self.console,
            transient=False,
        )
        self.task = self.progress.add_task("", total=total, completed=step, figures="", eta="–:––")
        self.progress.start()

    def logged(self, line: dict[str, Any]) -> None:
        self._take(line)
        self.progress.update(
            self.task, completed=self.step, figures=self._figures(), eta=self._eta()
        )

    def end(self) -> None:
        if hasattr(self, "progress"):
            self.progress.stop()


class PlainDisplay(_State):
    """Whole lines, some twenty a run, for logs and pipes."""

    def logged(self, line: dict[str, Any]) -> None:
        self._take(line)
        every = max(1, self.total // _PLAIN_LINES)
        if "eval_loss" in line or self.step % every == 0 or self.step in (1, self.total):
            self.console.print(
                f"step {self.step}/{self.total}  {self._figures()}  ETA {self._eta()}",
                highlight=False,
                soft_wrap=True,
            )

    def end(self) -> None:
        pass


def duration(seconds: float) -> str:
    """``m:ss``, or ``h:mm:ss`` from an hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
