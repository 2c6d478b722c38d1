"""Curves as ECharts wants them: what of a run is drawn, thinned so that nothing that stands out is lost."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.board.colours import Palette
from luthier.records import MetricsLine

Point = tuple[float, float]

MOST_POINTS = 400  # of a drawn curve; a screen shows no more


@dataclass(frozen=True)
class Line:
    """One line of a chart: its name, and the figure of a metrics line."""

    name: str
    value: Callable[[MetricsLine], float | None]
    colour: str  # of the palette


@dataclass(frozen=True)
class Chart:
    """One chart of a run.

    Attributes:
        about: for those who cannot see it, and under its title.
        percent: its figures are shares.
    """

    title: str
    about: str
    lines: tuple[Line, ...]
    percent: bool = False


def _extra(name: str) -> Callable[[MetricsLine], float | None]:
    """What an objective measures besides the loss."""
    return lambda line: line.extra.get(name)


CHARTS = (
    Chart(
        "Loss",
        "nats per supervised token; the rows of validation are never trained on",
        (
            Line("training", lambda x: x.loss, "base"),
            Line("validation", lambda x: x.eval_loss, "tuned"),
        ),
    ),
    Chart(
        "Forgetting",
        "share of general questions answered right, the first by the base model",
        (Line("general questions", lambda x: x.eval_probe_accuracy, "probe"),),
        percent=True,
    ),
    Chart(
        "Preference margin",
        "reward of the chosen answer less that of the rejected one",
        (
            Line("training", _extra("rewards/margins"), "base"),
            Line("validation", _extra("eval_rewards/margins"), "tuned"),
        ),
    ),
    Chart(
        "Preference accuracy",
        "share of pairs whose chosen answer has the higher reward",
        (
            Line("training", _extra("rewards/accuracies"), "base"),
            Line("validation", _extra("eval_rewards/accuracies"), "tuned"),
        ),
        percent=True,
    ),
    Chart(
        "KL",
        "nats from the reference or the teacher",
        (Line("training", _extra("kl"), "base"), Line("validation", _extra("eval_kl"), "tuned")),
    ),
    Chart("Learning rate", "by step", (Line("rate", lambda x: x.learning_rate, "tuned"),)),
    Chart("Gradient norm", "before it is clipped", (Line("norm", lambda x: x.grad_norm, "tuned"),)),
    Chart(
        "Speed",
        "tokens per second, prompts included",
        (Line("tokens/s", lambda x: x.tokens_per_second, "tuned"),),
    ),
    Chart(
        "Memory",
        "GiB, the most that the process has held",
        (Line("GiB", lambda x: x.memory_bytes / 2**30, "tuned"),),
    ),
)


def points(
    lines: Iterable[MetricsLine], value: Callable[[MetricsLine], float | None]
) -> list[Point]:
    """(step, figure) of the lines that have it, thinned."""
    found = [(x.step, y) for x in lines if (y := value(x)) is not None and math.isfinite(y)]
    return thinned(found)


def thinned(found: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """At most ``most`` of the points, the first and the last among them.

    Of each stretch its lowest and its highest stay, so that no spike disappears.
    """
    if len(found) <= most:
        return list(found)
    stretches = (most - 2) // 2
    inner = found[1:-1]
    kept = [found[0]]
    for number in range(stretches):
        stretch = inner[len(inner) * number // stretches : len(inner) * (number + 1) // stretches]
        ends = {min(stretch, key=lambda p: p[1]), max(stretch, key=lambda p: p[1])}
        kept += sorted(ends)
    return [*kept, found[-1]]


def frame(palette: Palette, *, legend: bool, percent: bool = False) -> dict[str, Any]:
    """Axes, legend and tooltip, in the colours of the page; without series."""
    labels = {"color": palette.soft, "fontSize": 11}
    return {
        "animation": False,
        "grid": {
            "left": 8,
            "right": 16,
            "top": 30 if legend else 12,
            "bottom": 4,
            "containLabel": True,
        },
        "legend": {
            "show": legend,
            "type": "scroll",
            "top": 0,
            "left": 0,
            "icon": "roundRect",
            "itemWidth": 12,
            "itemHeight": 12,  # a legend that is scrolled is cut to this
            "textStyle": {"color": palette.soft},
            "pageTextStyle": {"color": palette.soft},
        },
        "tooltip": {
            "trigger": "item",
            "renderMode": "richText",
            "backgroundColor": palette.panel,
            "borderColor": palette.line,
            "textStyle": {"color": palette.ink, "fontSize": 12},
        },
        "xAxis": {
            "type": "value",
            "axisLine": {"lineStyle": {"color": palette.line}},
            "axisLabel": {**labels, "hideOverlap": True},
            "splitLine": {"show": False},
        },
        "yAxis": {
            "type": "value",
            "scale": True,
            "splitNumber": 4,
            "axisLabel": {**labels, ":formatter": "v => (100 * v).toFixed(0) + ' %'"}
            if percent
            else labels,
            "splitLine": {"lineStyle": {"color": palette.line}},
        },
    }


def options(
    series: Sequence[tuple[str, Sequence[Point], str]], palette: Palette, *, percent: bool = False
) -> dict[str, Any]:
    """ECharts' options for lines of (name, points, colour).

    Tooltips are drawn, not made of HTML: a name is text, whatever it says. A key that begins with a
    colon is JavaScript to the component library, so keys are never anything but our own words.
    """
    form = "v => v == null ? '–' : (100 * v).toFixed(1) + ' %'"
    if not percent:
        form = "v => v == null ? '–' : Number(v).toPrecision(4)"
    drawing = frame(palette, legend=len(series) > 1, percent=percent)
    drawing["tooltip"] |= {"trigger": "axis", ":valueFormatter": form}
    drawing["xAxis"] |= {"min": "dataMin", "max": "dataMax", "minInterval": 1}
    return drawing | {
        "series": [
            {
                "type": "line",
                "name": name,
                "data": [list(point) for point in drawn],
                "showSymbol": len(drawn) < 25,
                "symbolSize": 5,
                "lineStyle": {"width": 2},
                "itemStyle": {"color": colour},
            }
            for name, drawn, colour in series
        ],
    }
