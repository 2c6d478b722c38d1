"""The list of runs, and their curves on top of each other."""

from typing import Any
from urllib.parse import quote

from nicegui import run as background
from nicegui import ui
from starlette.requests import Request

from luthier.board.curves import options, points
from luthier.board.index import Summary, read_tags, write_tags
from luthier.board.look import card, failure, frame, palette
from luthier.board.state import Board
from luthier.errors import UserError

_EVERY = 3.0  # seconds between two looks at the folder
LISTING = 60.0  # seconds that a busy machine may take to list its runs
_FIRST = 0.5  # seconds to read before the page is shown; the rest comes with the next looks
_FEW = 12  # runs that are shown without a scroll bar
_MOST_CURVES = 8  # on top of each other

# Cells are made of nodes and text, never of HTML: a run may be called anything.
_NAME = """params => {
  const a = document.createElement('a');
  a.href = '/run/' + encodeURIComponent(params.value);
  a.textContent = params.value; a.className = 'link';
  return a;
}"""
_PILL = """params => {
  if (!params.value) return '';
  const span = document.createElement('span');
  span.className = 'pill ' + params.value.replaceAll(' ', '-');
  span.textContent = params.value === 'no evidence' ? 'not enough evidence' : params.value;
  return span;
}"""
_TAGS = """params => {
  const all = document.createElement('span');
  for (const tag of params.value || []) {
    const one = document.createElement('span');
    one.className = 'tag'; one.textContent = tag; all.append(one);
  }
  return all;
}"""
_NUMBER = "p => p.value == null ? '–' : Number(p.value).toPrecision(4)"
_WHOLE = "p => p.value == null ? '–' : Math.round(p.value).toLocaleString('en')"
_WHEN = "p => p.value ? new Date(p.value * 1000).toISOString().slice(0, 16).replace('T', ' ') : '–'"
_TOOK = """p => p.value == null ? '–' : p.value < 60 ? Math.round(p.value) + ' s' :
  p.value < 3600 ? Math.round(p.value / 60) + ' min' : (p.value / 3600).toFixed(1) + ' h'"""
# On a telephone: which run, what it does, whether it is better.
_NARROW = """p => p.api.setColumnsVisible(
  ['model', 'method', 'step', 'loss', 'speed', 'memory', 'seconds', 'changed', 'tags'], p.clientWidth > 720)"""


def add(board: Board) -> None:
    """Register the page."""

    @ui.page("/", response_timeout=LISTING)
    async def show(request: Request) -> None:
        rows = await background.io_bound(board.index.rows, _FIRST)
        with frame(request, "Runs", "/"):
            _List(board, request).build(rows or [])


class _List:
    grid: ui.aggrid
    count: ui.label

    def __init__(self, board: Board, request: Request) -> None:
        self.board = board
        self.colours = palette(request)
        self.shown: dict[str, dict[str, Any]] = {}
        self.selected: list[str] = []
        self.kept = "loss"

    def build(self, summaries: list[Summary]) -> None:
        rows = [_row(summary) for summary in summaries]
        self.shown = {row["name"]: row for row in rows}
        if not rows:
            with ui.column().classes("part empty"):
                ui.label(f"There are no runs in {self.board.folders.runs} yet.")
                ui.link("Start the first one", "/new")
            ui.timer(_EVERY, self._first)
            return
        with ui.element("section").classes("part"):
            with ui.element("div").classes("line"):
                search = ui.input(placeholder="Filter: a name, a model, a tag, a verdict …")
                search.props('dense outlined clearable debounce=200 aria-label="Filter the runs"')
                search.classes("grow").on_value_change(
                    lambda e: self.grid.run_grid_method(
                        "setGridOption", "quickFilterText", e.value or ""
                    )
                )
                self.count = ui.label(self._counted(len(rows))).classes("soft small num")
            self.grid = ui.aggrid(_grid(rows), auto_size_columns=False).classes("grid-of-runs")
            if len(rows) <= _FEW:
                self.grid.classes("few")
            self.grid.on("selectionChanged", self._select, throttle=0.2, leading_events=False)
            ui.label(
                "Select runs to lay their curves over each other and to tag them; a click on a heading sorts."
            ).classes("soft small")
        self.beside = ui.column().classes("content-part")
        ui.timer(_EVERY, self._refresh, immediate=False)

    async def _first(self) -> None:
        if await background.io_bound(self.board.index.rows):
            ui.navigate.reload()

    async def _refresh(self) -> None:
        rows = await background.io_bound(self.board.index.rows)
        if rows is None:  # the board is shutting down
            return
        fresh = {summary.name: _row(summary) for summary in rows}
        change = {
            "add": [row for name, row in fresh.items() if name not in self.shown],
            "update": [
                row for name, row in fresh.items() if self.shown.get(name) not in (None, row)
            ],
            "remove": [{"name": name} for name in self.shown if name not in fresh],
        }
        if any(change.values()):
            self.shown = fresh
            self.grid.run_grid_method("applyTransaction", change)
        self.count.set_text(self._counted(len(fresh)))

    def _counted(self, count: int) -> str:
        said = f"{count:,} run" + ("" if count == 1 else "s")
        return said if self.board.index.complete else f"{said}, reading …"

    async def _select(self) -> None:
        chosen = await self.grid.get_selected_rows()
        self.selected = [row["name"] for row in chosen if row["name"] in self.shown]
        await self._draw()

    async def _draw(self) -> None:
        self.beside.clear()
        if not self.selected:
            return
        names = self.selected[:_MOST_CURVES]
        curves = await background.io_bound(self._curves, names)
        with (
            self.beside,
            card(
                "Curves of the selected runs",
                f"the first {_MOST_CURVES} of {len(self.selected)} selected"
                if len(self.selected) > _MOST_CURVES
                else "",
            ),
        ):
            with ui.element("div").classes("line"):
                kinds = {"loss": "training loss", "eval_loss": "validation loss"}
                choice = ui.toggle(kinds, value=self.kept, on_change=self._switch)
                choice.props('no-caps unelevated toggle-color=filled aria-label="Which loss"')
                tag = ui.input(placeholder="Tag").props('dense outlined aria-label="Tag"')
                ui.button(
                    "Add to selected", on_click=lambda: self._tag(tag.value or "", True)
                ).props("flat no-caps").classes("quiet")
                ui.button("Remove", on_click=lambda: self._tag(tag.value or "", False)).props(
                    "flat no-caps"
                ).classes("quiet")
            if curves:
                chart = ui.echart(options(curves, self.colours)).classes("chart tall")
                chart.props('role=img aria-label="Loss of the selected runs by step"')
            else:
                ui.label("None of them has such a curve yet.").classes("soft")

    def _curves(self, names: list[str]) -> list[tuple[str, Any, str]]:
        found = []
        for number, name in enumerate(names):
            try:
                lines = self.board.folders.run(name).metrics()
            except UserError:
                continue  # damaged or gone: the page of the run says so
            drawn = points(lines, lambda x: x.loss if self.kept == "loss" else x.eval_loss)
            if drawn:
                found.append((name, drawn, self.colours.runs[number]))
        return found

    async def _switch(self, event: Any) -> None:
        self.kept = event.value
        await self._draw()

    async def _tag(self, tag: str, wanted: bool) -> None:
        tag = tag.strip()
        if not tag:
            return
        tags = read_tags(self.board.folders)
        for name in self.selected:
            rest = tuple(other for other in tags.get(name, ()) if other != tag)
            tags[name] = (*rest, tag) if wanted else rest
        try:
            write_tags(self.board.folders, tags)
        except UserError as error:
            with self.beside:
                failure(error)
            return
        await self._refresh()


def _row(summary: Summary) -> dict[str, Any]:
    """What is known of a run; ten thousand of these go to the browser."""
    row = {
        "name": summary.name,
        "state": summary.state,
        "verdict": summary.verdict,
        "forgetting": summary.forgetting,
        "model": summary.model,
        "method": summary.method,
        "step": summary.step,
        "loss": summary.loss,
        "eval_loss": summary.eval_loss,
        "speed": summary.tokens_per_second,
        "memory": None if summary.memory_bytes is None else summary.memory_bytes / 2**30,
        "seconds": summary.seconds,
        "changed": round(summary.changed),
        "tags": list(summary.tags),
    }
    return {name: value for name, value in row.items() if value not in (None, "", [])}


def _grid(rows: list[dict[str, Any]]) -> dict[str, Any]:
    number = {"filter": "agNumberColumnFilter", "type": "rightAligned"}
    return {
        "columnDefs": [
            {
                "field": "name",
                "headerName": "Run",
                "minWidth": 150,
                "flex": 2,
                ":cellRenderer": _NAME,
            },
            {"field": "verdict", "headerName": "Better?", "width": 150, ":cellRenderer": _PILL},
            {"field": "state", "headerName": "State", "width": 125, ":cellRenderer": _PILL},
            {
                "field": "forgetting",
                "headerName": "Forgetting",
                "width": 145,
                ":cellRenderer": _PILL,
            },
            {
                "field": "eval_loss",
                "headerName": "Validation",
                "width": 130,
                ":valueFormatter": _NUMBER,
                **number,
            },
            {
                "field": "loss",
                "headerName": "Loss",
                "width": 105,
                ":valueFormatter": _NUMBER,
                **number,
            },
            {"field": "model", "headerName": "Model", "width": 150},
            {"field": "method", "headerName": "Method", "width": 115},
            {
                "field": "step",
                "headerName": "Step",
                "width": 95,
                ":valueFormatter": _WHOLE,
                **number,
            },
            {
                "field": "speed",
                "headerName": "Tokens/s",
                "width": 130,
                ":valueFormatter": _WHOLE,
                **number,
            },
            {
                "field": "memory",
                "headerName": "GiB",
                "width": 85,
                ":valueFormatter": _NUMBER,
                **number,
            },
            {
                "field": "seconds",
                "headerName": "Time",
                "width": 115,
                ":valueFormatter": _TOOK,
                **number,
            },
            {
                "field": "changed",
                "headerName": "Changed (UTC)",
                "width": 150,
                ":valueFormatter": _WHEN,
                **number,
            },
            {
                "field": "tags",
                "headerName": "Tags",
                "width": 140,
                ":cellRenderer": _TAGS,
                ":valueFormatter": "p => (p.value || []).join(', ')",
            },
        ],
        "defaultColDef": {"sortable": True, "filter": True, "resizable": True},
        "rowData": rows,
        ":getRowId": "p => p.data.name",
        "rowSelection": {"mode": "multiRow", "enableClickSelection": False},
        ":onGridSizeChanged": _NARROW,
        "domLayout": "autoHeight" if len(rows) <= _FEW else "normal",
        "ensureDomOrder": True,
        "suppressFieldDotNotation": True,
    }


def run_address(name: str) -> str:
    """The page of a run."""
    return f"/run/{quote(name, safe='')}"
