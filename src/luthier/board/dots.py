"""Scatter plots as ECharts wants them: trials by loss, variants by memory."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from luthier.board.colours import Palette
from luthier.board.curves import Point, frame


@dataclass(frozen=True)
class Dot:
    """A mark at (``x``, ``y``), with the interval of ``y`` where it has one.

    Attributes:
        about: what its tooltip says.
    """

    x: float | str
    y: float
    about: str
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Group:
    """Marks of one colour and one entry of the legend; ``size`` in pixels."""

    name: str
    colour: str
    dots: Sequence[Dot]
    hollow: bool = False
    size: int = 10
    line: Sequence[Point] = field(default=())


def scatter(
    groups: Sequence[Group],
    palette: Palette,
    *,
    x_name: str,
    percent: bool = False,
    log: bool = False,
    choices: Sequence[str] | None = None,
    bounds: tuple[float, float] | None = None,
    most: float | None = None,
) -> dict[str, Any]:
    """ECharts' options for groups of marks; tooltips are drawn, as those of curves.

    Args:
        log: of the x axis.
        choices: the values of an x axis that is no number.
        bounds: of the x axis; marks beyond them widen it.
        most: the top of the y axis; marks above it are drawn there.
    """
    drawing = frame(palette, legend=True, percent=percent)
    drawing["grid"] |= {"bottom": 22, "top": 34}
    drawing["tooltip"] |= {":formatter": "p => p.data.name || ''"}
    axis = drawing["xAxis"]
    axis |= {
        "name": x_name,
        "nameLocation": "middle",
        "nameGap": 26,
        "nameTextStyle": {"color": palette.soft, "fontSize": 11},
        "type": "category" if choices is not None else "log" if log else "value",
        "scale": True,
    }
    if choices is not None:
        axis["data"] = list(choices)
        axis["axisLabel"] |= {"interval": 0, "width": 320 // len(choices), "overflow": "truncate"}
    else:
        axis["axisLabel"] |= {":formatter": "v => String(+v.toPrecision(4))"}
    if bounds is not None:
        inside = [*bounds, *(dot.x for group in groups for dot in group.dots)]
        axis |= {"min": min(map(float, inside)), "max": max(map(float, inside))}
    series: list[dict[str, Any]] = []
    for group in groups:
        if group.line:
            series.append(_line(group.line, group.colour, group.name))
        series += [
            _line([(dot.x, end) for end in dot.interval], group.colour, group.name)
            for dot in group.dots
            if dot.interval is not None
        ]
        series.append(
            {
                "type": "scatter",
                "name": group.name,
                "data": [
                    {
                        "value": [dot.x, dot.y if most is None else min(most, dot.y)],
                        "name": dot.about,
                    }
                    for dot in group.dots
                ],
                "symbolSize": group.size,
                "itemStyle": {
                    "color": palette.panel if group.hollow else group.colour,
                    "borderColor": group.colour,
                    "borderWidth": 2,
                },
            }
        )
    return drawing | {"series": series}


def _line(points: Sequence[tuple[Any, float]], colour: str, name: str) -> dict[str, Any]:
    return {
        "type": "line",
        "name": name,
        "data": [list(point) for point in points],
        "showSymbol": False,
        "silent": True,
        "lineStyle": {"width": 2, "color": colour, "opacity": 0.6},
        "itemStyle": {"color": colour},
    }
