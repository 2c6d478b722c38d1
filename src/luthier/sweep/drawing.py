"""Where the marks of a sweep's figures go, in the units of their SVG view boxes."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from luthier.records.sweep import Choice, Dimension, Span, Sweep, SweepTrial
from luthier.sweep.space import place_of
from luthier.sweep.tables import short, value_text

LEFT, RIGHT, TOP, BOTTOM = 46.0, 406.0, 14.0, 220.0


@dataclass(frozen=True)
class Dot:
    """A trial at (x, y); ``kind`` is its class: best, default, finished, pruned."""

    x: float
    y: float
    kind: str
    text: str


@dataclass(frozen=True)
class Figure:
    """Dots and lines in a box 420 wide and 260 high; ticks are (position, text)."""

    title: str
    x_label: str
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    dots: list[Dot] = field(default_factory=list)
    lines: list[tuple[str, str]] = field(default_factory=list)  # class, points


def kind(sweep: Sweep, trial: SweepTrial) -> str:
    if trial.number == sweep.best:
        return "best"
    return "default" if trial.default else trial.state


def by_trial(sweep: Sweep) -> Figure | None:
    """Loss of each trial in their order, and the lowest so far."""
    shown = [trial for trial in sweep.trials if trial.loss is not None]
    if not shown:
        return None
    up = _losses(shown)
    most = max(trial.number for trial in shown) or 1

    def across(number: float) -> float:
        return round(LEFT + 8 + (RIGHT - LEFT - 16) * number / most, 1)

    corners, lowest = [], math.inf
    for trial in shown:
        if trial.state == "finished" and trial.loss is not None:
            if lowest < math.inf:
                corners.append(f"{across(trial.number)},{up(lowest)}")
            lowest = min(lowest, trial.loss)
            corners.append(f"{across(trial.number)},{up(lowest)}")
    steps = sorted({0, most // 2, most})
    return Figure(
        "Loss by trial, and the lowest so far",
        "trial",
        [(across(number), str(number)) for number in steps],
        _levels(shown, up),
        [_dot(sweep, trial, across(trial.number), up) for trial in shown],
        [("lowest", " ".join(corners))],
    )


def curves(sweep: Sweep) -> Figure | None:
    """Validation loss on the way, by evaluation."""
    shown = [trial for trial in sweep.trials if trial.curve]
    if not shown:
        return None
    up = _losses(shown)
    most = max(len(trial.curve) for trial in shown)

    def across(number: int) -> float:
        return round(LEFT + (RIGHT - LEFT) * number / most, 1)

    ordered = sorted(shown, key=lambda trial: (trial.number == sweep.best, trial.default))
    lines, ends = [], []
    for trial in ordered:
        points = [(across(n), up(loss)) for n, loss in enumerate(trial.curve, 1)]
        lines.append((kind(sweep, trial), " ".join(f"{x},{y}" for x, y in points)))
        x, y = points[-1]
        ends.append(Dot(x, y, kind(sweep, trial), f"trial {trial.number}"))
    return Figure(
        "Validation loss on the way",
        "evaluation",
        [(across(number), str(number)) for number in range(1, most + 1)],
        _levels(shown, up),
        ends,
        lines,
    )


def slices(sweep: Sweep) -> list[Figure]:
    """For each key the loss by its value, those that mattered most first."""
    shown = [trial for trial in sweep.trials if trial.loss is not None]
    if not shown:
        return []
    up = _losses(shown)
    keys = list(sweep.importance)
    rank = {key: place for place, key in enumerate(keys)}
    space = sorted(sweep.space, key=lambda dimension: rank.get(dimension.key, len(keys)))
    return [_slice(sweep, dimension, shown, up) for dimension in space]


def _slice(
    sweep: Sweep,
    dimension: Dimension,
    shown: Sequence[SweepTrial],
    up: Callable[[float], float],
) -> Figure:
    across, ticks = _axis(dimension)
    # The default may lie outside of a space that a person gave.
    placed = [
        (trial, x) for trial in shown if (x := across(trial.values.get(dimension.key))) is not None
    ]
    return Figure(
        short(dimension.key),
        dimension.key
        + (", by its logarithm" if isinstance(dimension, Span) and dimension.log else ""),
        ticks,
        _levels(shown, up),
        [_dot(sweep, trial, x, up) for trial, x in placed],
    )


def _axis(
    dimension: Dimension,
) -> tuple[Callable[[object], float | None], list[tuple[float, str]]]:
    """Where values of a key go, and the ticks."""
    if isinstance(dimension, Choice):
        share = (RIGHT - LEFT) / len(dimension.choices)
        at = [round(LEFT + share * (n + 0.5), 1) for n in range(len(dimension.choices))]
        names = [value_text(choice) for choice in dimension.choices]
        width = max(6, int(60 / len(names)))
        cut = [name if len(name) <= width else f"{name[: width - 1]}…" for name in names]

        def chosen(value: object) -> float | None:
            place = place_of(dimension, value)
            return None if place is None else at[place]

        return chosen, list(zip(at, cut, strict=True))

    scale: Callable[[float], float] = math.log if dimension.log else float
    low, high = scale(dimension.low), scale(dimension.high)

    def across(value: object) -> float | None:
        if not isinstance(value, int | float) or not dimension.low <= value <= dimension.high:
            return None
        return round(LEFT + (RIGHT - LEFT) * (scale(float(value)) - low) / (high - low), 1)

    middle = math.exp((low + high) / 2) if dimension.log else (low + high) / 2
    ends = [dimension.low, middle, dimension.high]
    return across, [(across(end) or LEFT, f"{end:.2g}") for end in ends]


def _losses(trials: Sequence[SweepTrial]) -> Callable[[float], float]:
    """Where losses go. One that is far above the others stays at the top: it would flatten them."""
    low, high = _range(trials)

    def up(loss: float) -> float:
        share = min(1.0, (loss - low) / (high - low))
        return round(BOTTOM - 6 - (BOTTOM - TOP - 6) * share, 1)

    return up


def _range(trials: Sequence[SweepTrial]) -> tuple[float, float]:
    losses = sorted(trial.loss for trial in trials if trial.loss is not None)
    if not losses:
        return 0.0, 1.0
    low, middle = losses[0], losses[len(losses) // 2]
    high = min(losses[-1], middle + 3 * (middle - low)) if middle > low else losses[-1]
    return low, high if high > low else low + 1e-3


def _levels(trials: Sequence[SweepTrial], up: Callable[[float], float]) -> list[tuple[float, str]]:
    low, high = _range(trials)
    return [
        (up(loss), f"{loss:.3f}" if high - low < 0.1 else f"{loss:.2f}")
        for loss in (low, (low + high) / 2, high)
    ]


def _dot(sweep: Sweep, trial: SweepTrial, x: float, up: Callable[[float], float]) -> Dot:
    assert trial.loss is not None
    return Dot(x, up(trial.loss), kind(sweep, trial), f"trial {trial.number}: {trial.loss:.4f}")
