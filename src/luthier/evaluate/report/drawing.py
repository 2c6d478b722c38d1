"""Where the marks of the report's figures go, in the units of their SVG view boxes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from luthier.records.evaluation import Interval

Point = tuple[float, float]


@dataclass(frozen=True)
class Mark:
    """A mean with its interval, as shares of the axis between 0 and 100."""

    low: float
    mean: float
    high: float


@dataclass(frozen=True)
class Curve:
    """One line of a chart: ``points`` as SVG wants them, its last value, its name and class."""

    name: str
    style: str
    points: str
    dots: tuple[Point, ...]
    last: float


@dataclass(frozen=True)
class Chart:
    """A chart 640 wide and 190 high; ``ticks`` are (position, text) on each axis."""

    curves: tuple[Curve, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]


LEFT, RIGHT, TOP, BOTTOM = 44.0, 630.0, 12.0, 164.0


def marks(base: Interval, tuned: Interval, share: bool) -> dict[str, Mark]:
    """Both sides of a comparison on one axis: 0 to 1 for shares, else 0 to a little over the most."""
    least = min(0.0, base.low, tuned.low)
    most = 1.0 if share else 1.04 * max(base.high, tuned.high)
    span = most - least or 1.0

    def mark(side: Interval) -> Mark:
        return Mark(*(100 * (at - least) / span for at in (side.low, side.mean, side.high)))

    return {"base": mark(base), "tuned": mark(tuned)}


def chart(
    lines: Sequence[tuple[str, str, Sequence[Point]]], *, percent: bool = False
) -> Chart | None:
    """Curves of (name, style, [(x, y)]) on common axes; None where there is nothing to draw."""
    drawn = [
        (name, style, [p for p in points if math.isfinite(p[1])]) for name, style, points in lines
    ]
    drawn = [line for line in drawn if line[2]]
    if not drawn:
        return None
    xs = [x for _, _, points in drawn for x, _ in points]
    ys = [y for _, _, points in drawn for _, y in points]
    x_low, x_high = min(xs), max(xs)
    y_low, y_high = min(ys), max(ys)
    if percent:
        y_low, y_high = max(0.0, y_low - 0.1), min(1.0, y_high + 0.1)
    x_span, y_span = x_high - x_low or 1, y_high - y_low or 1

    def place(x: float, y: float) -> Point:
        return (
            round(LEFT + (RIGHT - LEFT) * (x - x_low) / x_span, 1),
            round(BOTTOM - (BOTTOM - TOP) * (y - y_low) / y_span, 1),
        )

    curves = []
    for name, style, points in drawn:
        dots = tuple(place(x, y) for x, y in points)
        text = " ".join(f"{x},{y}" for x, y in dots)
        curves.append(Curve(name, style, text, dots if len(dots) <= 30 else (), points[-1][1]))
    form = "{:.0%}" if percent else "{:.2f}"
    steps = sorted({x_low, round((x_low + x_high) / 2), x_high})
    levels = sorted({y_low, (y_low + y_high) / 2, y_high})
    return Chart(
        tuple(curves),
        tuple((place(x, y_low)[0], f"{x:.0f}") for x in steps),
        tuple((place(x_low, y)[1], form.format(y)) for y in levels),
    )
