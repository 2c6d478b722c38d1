"""Progress in words: how far, how fast, and the time left."""

from dataclasses import dataclass, field
from typing import Any

from luthier.events import Progress
from luthier.records import MetricsLine

_UNKNOWN = "–:––"


@dataclass
class Pace:
    """How fast work goes, measured from its first piece on.

    The first piece does not count: it often takes far longer than the others (loading, compiling,
    starting processes), and work that resumes an earlier session starts with the pieces that one did.
    """

    start: int = 0
    first: tuple[float, int] | None = None
    last: tuple[float, int] = (0.0, 0)

    def take(self, seconds: float, done: int) -> None:
        """Record that ``done`` pieces were done at ``seconds``, by any clock."""
        self.last = (seconds, done)
        if self.first is None and done > self.start:
            self.first = self.last

    @property
    def rate(self) -> float | None:
        """Pieces per second; None until it is known."""
        if self.first is None:
            return None
        seconds, done = (last - first for last, first in zip(self.last, self.first, strict=True))
        return done / seconds if seconds > 0 and done > 0 else None

    def eta(self, total: int) -> str:
        """The time that the rest of ``total`` pieces takes at this pace."""
        rate = self.rate
        return _UNKNOWN if rate is None else duration((total - self.last[1]) / rate)


class Work:
    """Some work that sends ``Progress``; ``now`` is seconds by any clock."""

    def __init__(self, event: Progress, now: float) -> None:
        self.begun = now
        self.pace = Pace(event.done)
        self.take(event, now)

    def take(self, event: Progress, now: float) -> None:
        self.event = event
        self.pace.take(now, event.done)

    def how_far(self) -> list[str]:
        """Count, rate and time left, as far as they are known."""
        event, rate = self.event, self.pace.rate
        if not event.unit or (event.total is None and not event.done):
            return []
        if event.total is None:
            parts = [f"{event.done:,} {event.unit}"]
        else:
            parts = [f"{event.done:,} of {event.total:,}"]
        if rate is not None:
            parts.append(_rate(rate))
            if event.total is not None:
                parts.append(f"ETA {self.pace.eta(event.total)}")
        return parts

    def line(self, now: float) -> str:
        """How far it is, as a line of its own."""
        parts = self.how_far()
        if self.pace.rate is None:
            parts.append(f"{duration(now - self.begun)} so far")
        return f"{self.event.task}: {', '.join(parts)}"

    def last_line(self, now: float) -> str:
        """What there was to do, and the time it took."""
        count = f"{self.event.done:,} {self.event.unit}" if self.event.unit else "done"
        return f"{self.event.task}: {count} in {duration(now - self.begun)}"


@dataclass
class Training:
    """A run of training steps; ``saved`` is the step of the last checkpoint."""

    step: int
    total: int
    saved: int | None = None
    pace: Pace = field(init=False)
    figures: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.pace = Pace(self.step)

    def take(self, line: MetricsLine) -> None:
        self.step = line.step
        self.figures |= line.to_dict()
        self.pace.take(line.seconds, line.step)

    def shown_figures(self) -> str:
        """The latest loss, validation loss, probe, speed and memory."""
        formats = {
            "loss": "loss {:.3f}",
            "eval_loss": "val {:.3f}",
            "eval_rewards/accuracies": "val accuracy {:.0%}",
            "rewards/margins": "margin {:.3f}",
            "eval_probe_accuracy": "probe {:.0%}",
            "tokens_per_second": "{:,.0f} tok/s",
            "rows_read": "{:,} rows read",
        }
        figures = self.figures
        parts = [form.format(figures[key]) for key, form in formats.items() if key in figures]
        if "memory_bytes" in figures:
            parts.append(f"{figures['memory_bytes'] / 2**30:.1f} GiB")
        if self.saved is not None:
            parts.append(f"saved {self.saved}")
        return "  ".join(parts)

    def eta(self) -> str:
        return self.pace.eta(self.total)

    def line(self) -> str:
        return f"step {self.step}/{self.total}  {self.shown_figures()}  ETA {self.eta()}"

    def last_line(self) -> str:
        took = f"  {duration(self.pace.last[0])}" if self.figures else ""
        return f"step {self.step}/{self.total}  {self.shown_figures()}{took}"


def duration(seconds: float) -> str:
    """``m:ss``, or ``h:mm:ss`` from an hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _rate(rate: float) -> str:
    if rate >= 100:
        return f"{float(f'{rate:.2g}'):,.0f}/s"
    return f"{rate:.2g}/s" if rate >= 1 else f"{1 / rate:.2g} s each"
