"""What the pages of comparisons and of sweeps share: their list, and runs that still go on."""

from collections.abc import Awaitable, Callable
from urllib.parse import quote

from nicegui import run as background
from nicegui import ui
from starlette.requests import Request

from luthier.board.colours import Palette
from luthier.board.curves import Point, options, points
from luthier.board.folders import Folders, Study
from luthier.board.index import Summary, summarise
from luthier.board.look import card, duration, failure, frame, palette, pill
from luthier.board.pages.runs import LISTING
from luthier.board.parts import Cell, bar, table
from luthier.board.state import Board
from luthier.errors import UserError

_EVERY = 3.0  # seconds between two looks
_MOST_CURVES = 8

# A study's verdict in a word, and a sentence; raises UserError where its result cannot be read.
Told = Callable[[Study], tuple[str, str]]


def add_pages(
    board: Board,
    address: str,
    what: str,
    is_of: Callable[[Study], bool],
    told: Told,
    show: Callable[[Study, Palette], Awaitable[None]],
) -> None:
    """Register the page of all studies that ``is_of`` this kind, called ``what``, and the page of one.

    Args:
        address: of the page of all; the last part of it is the command that makes them.
        show: builds what the page of one holds.
    """

    @ui.page(address, response_timeout=LISTING)
    async def show_all(request: Request) -> None:
        with frame(request, address[1:].capitalize(), address):
            await _show_list(board.folders, address, what, is_of, told)

    @ui.page(f"{address}/{{name}}", response_timeout=LISTING)
    async def show_one(request: Request, name: str) -> None:
        with frame(request, name, address):
            try:
                await show(board.folders.study(name), palette(request))
            except UserError as error:
                failure(error)


async def _show_list(
    folders: Folders, address: str, what: str, is_of: Callable[[Study], bool], told: Told
) -> None:
    """The verdict of each before anything else."""
    found = await background.io_bound(_listed, folders, is_of, told) or []
    for study, word, about in found:
        with ui.element("section").classes(f"answer {word.replace(' ', '-')}"):
            pill(word)
            ui.link(study.name, f"{address}/{quote(study.name, safe='')}").classes("big wrap")
            ui.label(about).classes("soft wrap")
    if not found:
        with ui.column().classes("part empty"):
            ui.label(f"There is no {what} yet.")
            ui.label(f"Make one with luthier {address[1:]}; it appears here as soon as it begins.")
            for place in folders.results:
                ui.label(str(place)).classes("mono")


def _listed(
    folders: Folders, is_of: Callable[[Study], bool], told: Told
) -> list[tuple[Study, str, str]]:
    found = []
    for study in filter(is_of, folders.studies()):
        if not study.folder.record_path.is_file():
            busy = study.folder.worker() is not None
            found.append((study, "running" if busy else "stopped", "no result yet"))
            continue
        try:
            found.append((study, *told(study)))
        except UserError as error:
            found.append((study, "failed", str(error)))
    return found


def run_link(name: str, text: str) -> Callable[[], ui.link]:
    """A cell that leads to the page of a run."""
    return lambda: ui.link(text, f"/run/{quote(name, safe=':')}")


# The runs, their curves, and whether a process works on them.
_Seen = tuple[list[Summary], list[tuple[str, list[Point], str]], bool]


class GoingOn:
    """The runs of a study while it has no result: how far each is, and their curves."""

    def __init__(self, study: Study, colours: Palette, done: Callable[[], bool]) -> None:
        self.study = study
        self.colours = colours
        self.done = done
        self.shown: _Seen | None = None

    async def build(self) -> None:
        with ui.element("section").classes("answer"), ui.element("div").classes("big"):
            self.state = ui.element("span").classes("line").props("aria-live=polite")
        with card("Runs so far"):
            self.rows = ui.column().classes("content-part")
        with card("Validation loss so far", f"nats per token, of the last {_MOST_CURVES} runs"):
            self.chart = ui.echart(options([], self.colours)).classes("chart tall")
            self.chart.props('role=img aria-label="Validation loss of the runs by step"')
        await self._look()
        ui.timer(_EVERY, self._look, immediate=False)

    async def _look(self) -> None:
        if await background.io_bound(self.done):
            ui.navigate.reload()
            return
        found = await background.io_bound(self._read)
        if found is None or found == self.shown:
            return
        self.shown = found
        rows, curves, busy = found
        self.state.clear()
        with self.state:
            pill("running" if busy else "stopped")
            done = sum(row.state == "finished" for row in rows)
            ui.label(f"{done} of {len(rows)} runs so far have finished").classes("as-text")
        self.rows.clear()
        with self.rows:
            table(
                ("run", "state", "progress", "loss", "validation", "time"),
                [self._row(row) for row in rows],
                numbers=(3, 4, 5),
            )
        self.chart.options.update(options(curves, self.colours))
        self.chart.update()

    def _read(self) -> _Seen:
        runs = self.study.runs()
        rows = [summarise(run) for run in runs]
        curves = []
        for number, run in enumerate(runs[-_MOST_CURVES:]):
            try:
                drawn = points(run.metrics(), lambda line: line.eval_loss)
            except UserError:
                continue  # damaged: the page of the run says so
            if drawn:
                curves.append((run.root.name, drawn, self.colours.runs[number]))
        busy = self.study.folder.worker() is not None or any(r.state == "running" for r in rows)
        return rows, curves, busy

    def _row(self, row: Summary) -> list[Cell]:
        name = f"{self.study.name}:{row.name}"
        share = (row.step or 0) / row.steps if row.steps else 0.0
        return [
            run_link(name, row.name),
            lambda: pill(row.state),
            lambda: bar(share),
            "–" if row.loss is None else f"{row.loss:.4f}",
            "–" if row.eval_loss is None else f"{row.eval_loss:.4f}",
            duration(row.seconds),
        ]
