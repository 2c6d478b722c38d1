"""Parts that several pages are made of; every text of data and models goes in as text."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from nicegui import ui

from luthier.board.differences import differences
from luthier.board.look import SIGNS, pill
from luthier.records.evaluation import (
    Compared,
    Interval,
    MetricCompared,
    PairedTest,
    PerplexityCompared,
)

Cell = str | Callable[[], Any]  # a text, or what builds the cell


def table(
    heads: Sequence[str],
    rows: Sequence[Sequence[Cell]],
    numbers: Sequence[int] = (),
    name: str = "",
) -> None:
    """A table.

    Args:
        numbers: the columns that hold figures.
        name: for those who cannot see it; no other table of the page has it. Default: its headings.
    """
    scroll = ui.element("div").classes("scroll").props("tabindex=0 role=region")
    scroll.props["aria-label"] = name or f"Table of {', '.join(heads)}"
    with scroll, ui.element("table").classes("plain"):
        with ui.element("thead"), ui.element("tr"):
            for column, head in enumerate(heads):
                cell = ui.element("th").props("scope=col").classes("n" if column in numbers else "")
                with cell:
                    ui.label(head)
        with ui.element("tbody"):
            for row in rows:
                with ui.element("tr"):
                    for column, content in enumerate(row):
                        with ui.element("td").classes("n" if column in numbers else "wrap"):
                            if callable(content):
                                content()
                            else:
                                ui.label(content)


def words_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table of texts; a cell that is a verdict or a state gets its sign and colour."""

    def shown(cell: str) -> Cell:
        return (lambda: pill(cell)) if cell in SIGNS else cell

    table(
        [head or "name" for head in heads],
        [[shown(cell) for cell in row] for row in rows],
        numbers=[
            column
            for column in range(1, len(heads))
            if all(row[column][:1] in _FIGURES for row in rows)
        ],
    )


_FIGURES = set("0123456789+-–<$×") | {""}


@dataclass(frozen=True)
class Versus:
    """One side held against a reference on the same rows.

    Attributes:
        share: whether the difference is one of shares.
    """

    name: str
    test: PairedTest
    share: bool
    higher_is_better: bool

    def on_axis(self, difference: float) -> float:
        """So that better is to the right."""
        return difference if self.higher_is_better else -difference


def forest(rows: Sequence[Versus], reference: str, one_scale: bool = True) -> None:
    """The difference of each from ``reference`` with its interval: better is right.

    An interval that covers the line in the middle is not enough evidence, which is seen before any
    figure is read.

    Args:
        one_scale: whether the rows are of one measure, so that lengths compare.
    """
    # With the reference in the middle, so that left and right mean the same in each picture.
    reaches = [1.05 * max(abs(row.test.low), abs(row.test.high)) or 1.0 for row in rows]
    if one_scale:
        reaches = [max(reaches, default=1.0)] * len(rows)
    with ui.element("div").classes("forest"):
        for row, reach in zip(rows, reaches, strict=True):
            test = row.test
            left, middle, right = sorted(
                50 + 50 * row.on_axis(end) / reach for end in (test.low, test.difference, test.high)
            )
            scale, form = (100, "+.1f") if row.share else (1, "+.3g")
            ui.label(row.name).classes("forest-name wrap")
            with ui.element("div"):
                pill(test.verdict)
            said = (
                f"{row.name} against {reference}: {scale * test.difference:{form}}, "
                f"{scale * test.low:{form}} to {scale * test.high:{form}}"
            )
            axis = ui.element("div").classes(f"axis {test.verdict.replace(' ', '-')}")
            axis.props("role=img")
            axis.props["aria-label"] = said  # not parsed: a name may hold quotes
            with axis:
                ui.element("i").style(f"left:{left:.2f}%;width:{max(0.4, right - left):.2f}%")
                ui.element("b").style(f"left:{middle:.2f}%")
        ui.element("span").classes("forest-foot")
        ui.element("span")
        with ui.element("div").classes("ends soft small"):
            ui.label("← worse")
            ui.label(f"as {reference}").classes("wrap")
            ui.label("better →")


def figure(value: float, share: bool) -> str:
    """A score: a share as per cent."""
    if share:
        return f"{100 * value:.1f}%"
    return f"{value:.3f}" if abs(value) < 1000 else f"{value:.3g}"


def interval(side: Interval, share: bool) -> Callable[[], None]:
    """A mean over its interval."""

    def build() -> None:
        ui.label(figure(side.mean, share))
        ui.label(f"{figure(side.low, share)} – {figure(side.high, share)}").classes("iv")

    return build


def change(found: Compared | PerplexityCompared, share: bool) -> Callable[[], None]:
    """What changed from base to tuned, over its interval: points of a share, or a ratio."""

    def build() -> None:
        if isinstance(found, PerplexityCompared):
            r = found.ratio
            ui.label(f"×{r.ratio:.3g}")
            ui.label(f"{r.low:.3g} – {r.high:.3g}").classes("iv")
            return
        test = found.test
        scale, form = (100, "+.1f") if share else (1, "+.3g")
        ui.label(f"{scale * test.difference:{form}}")
        ui.label(f"{scale * test.low:{form}} to {scale * test.high:{form}}").classes("iv")

    return build


def whisker(base: Interval, tuned: Interval, share: bool) -> Callable[[], None]:
    """Both sides with their intervals on one axis, as in the report."""

    def build() -> None:
        from luthier.api import marks

        sides = (("of-base", base), ("of-tuned", tuned))
        said = "; ".join(
            f"{name.removeprefix('of-')} {figure(i.mean, share)}, {figure(i.low, share)} to {figure(i.high, share)}"
            for name, i in sides
        )
        drawn = marks(base, tuned, share)
        with ui.element("div").classes("whisker").props(f'role=img aria-label="{said}"'):
            for name, mark in (("of-base", drawn["base"]), ("of-tuned", drawn["tuned"])):
                width = max(0.5, mark.high - mark.low)
                ui.element("i").classes(name).style(f"left:{mark.low:.2f}%;width:{width:.2f}%")
                ui.element("b").classes(name).style(f"left:{mark.mean:.2f}%")

    return build


def is_share(found: Compared | PerplexityCompared) -> bool:
    """Whether scores are shares; those of the probe, which do not say, are."""
    return found.share if isinstance(found, MetricCompared | PerplexityCompared) else True


def pair(base: str, tuned: str) -> None:
    """Two answers side by side; what differs is marked."""
    left, right = differences(base.strip(), tuned.strip())
    with ui.element("div").classes("pair"):
        for side, pieces in (("base", left), ("tuned", right)):
            with ui.element("div").classes(f"side of-{side}"):
                ui.label(side).classes("soft small")
                with ui.element("div").classes("text"):
                    for text, changed in pieces:
                        words = ui.label(text).classes("as-text")
                        if changed:
                            words.classes("changed")
                    if not any(text for text, _ in pieces):
                        ui.label("(nothing)").classes("soft")


def bar(share: float) -> None:
    """A bar that is filled to ``share``."""
    with ui.element("div").classes("track").props('aria-hidden="true"'):
        ui.element("div").classes("done").style(f"width:{100 * min(1.0, max(0.0, share)):.1f}%")


def content(turn: dict[str, Any]) -> str:
    """What a turn says, whatever form its content has."""
    said = turn.get("content")
    return said if isinstance(said, str) else "" if said is None else str(said)
