"""The list of runs, and their curves on top of each other."""

from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from nicegui import run as background
from nicegui import ui
from starlette.requests import Request

from luthier.board.curves import options, points
from luthier.board.index import Summary, read_tags, write_tags
from luthier.board.listing import MOST
from luthier.board.look import card, failure, frame, heading, palette
from luthier.board.parts import Versus, forest, interval, table
from luthier.board.state import Board
from luthier.board.work import work
from luthier.errors import UserError

if TYPE_CHECKING:
    from luthier.api import RunsCompared

_EVERY = 3.0  # seconds between two looks at the folder
LISTING = 60.0  # seconds that a busy machine may take to list its runs
_FEW = 12  # runs that are shown without a scroll bar
_ROW, _HEAD = 42, 49  # pixels
_MOST_CURVES = 8  # on top of each other

# Cells are made of nodes and text, never of HTML: a run may be called anything.
_NAME = """params => {
  const a = document.createElement('a');
  a.href = '/run/' + encodeURIComponent(params.value);
  a.textContent = params.value; a.className = 'link';
  return a;
}"""
_VERDICT = """params => {
  const span = document.createElement('span');
  span.className = params.value ? 'pill ' + params.value.replaceAll(' ', '-') : 'soft';
  span.textContent = params.value === 'no evidence' ? 'not enough evidence' : params.value || 'not evaluated';
  return span;
}"""
_PILL = """params => {
  if (!params.value) return '';
  const span = document.createElement('span');
  span.className = 'pill ' + params.value.replaceAll(' ', '-');
  span.textContent = params.value;
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
_SOURCE = """{ getRows: p => {
  const by = p.sortModel[0] || {};
  const asked = new URLSearchParams({start: p.startRow, end: p.endRow, text: p.context?.text || '',
    sort: by.colId || '', order: by.sort || ''});
  fetch('/rows?' + asked).then(r => r.json()).then(d => p.successCallback(d.rows, d.count), () => p.failCallback());
} }"""
# The library of the grid is the largest script, which the page would ask for after all others.
_GRID_FIRST = '<script type="module" async>import "nicegui-aggrid"</script>'
# On a telephone: which run, what it does, whether it is better.
_NARROW = """p => p.api.setColumnsVisible(
  ['model', 'method', 'step', 'loss', 'speed', 'memory', 'seconds', 'changed', 'tags'], p.clientWidth > 720)"""


def add(board: Board) -> None:
    """Register the page."""

    @ui.page("/", response_timeout=LISTING)
    async def show(request: Request) -> None:
        some = await background.io_bound(board.index.any)
        with frame(request, "Runs", "/"):
            _List(board, request).build(bool(some))


class _List:
    grid: ui.aggrid
    box: ui.element
    count: ui.label

    def __init__(self, board: Board, request: Request) -> None:
        self.board = board
        self.colours = palette(request)
        self.shown: list[Summary] = []
        self.selected: list[str] = []
        self.kept = "loss"

    def build(self, some: bool) -> None:
        if not some:
            with ui.column().classes("part empty"):
                ui.label(f"There are no runs in {self.board.folders.runs} yet.")
                ui.link("Start the first one", "/new")
            ui.timer(_EVERY, self._first)
            return
        with ui.element("section").classes("part"):
            with ui.element("div").classes("line"):
                search = ui.input(placeholder="Filter: a name, a model, a tag, loss<1.5 …")
                search.props('dense outlined clearable debounce=200 aria-label="Filter the runs"')
                search.classes("grow").on_value_change(lambda e: self._filter(e.value or ""))
                self.count = ui.label().classes("soft small num")
            # The height is that of a box around it: a change of the grid itself would make it anew.
            ui.add_head_html(_GRID_FIRST)
            self.box = ui.element("div").classes("grid-of-runs")
            with self.box:
                self.grid = ui.aggrid(_grid(), auto_size_columns=False)
            self.grid.on("selectionChanged", self._select, throttle=0.2, leading_events=False)
            ui.label(
                "Select runs to compare them, to lay their curves over each other and to tag them; "
                "a click on a heading sorts."
            ).classes("soft small")
        self.beside = ui.column().classes("content-part")
        ui.timer(_EVERY, self._refresh)

    async def _first(self) -> None:
        if await background.io_bound(self.board.index.any):
            ui.navigate.reload()

    def _filter(self, text: str) -> None:
        self.grid.run_grid_method("setGridOption", "context", {"text": text})
        self.grid.run_grid_method("purgeInfiniteCache")

    async def _refresh(self) -> None:
        rows = await background.io_bound(self.board.index.rows)
        if rows is None:  # the board is shutting down
            return
        said = f"{len(rows):,} run" + ("" if len(rows) == 1 else "s")
        self.count.set_text(said if self.board.index.complete else f"{said}, reading …")
        if rows != self.shown:
            if self.shown:
                self.grid.run_grid_method("refreshInfiniteCache")
            self.shown = rows
            # As high as its rows, so that few of them leave no gap.
            self.box.style(f"height: {_HEAD + _ROW * min(_FEW, max(2, len(rows))) + 2}px")

    async def _select(self) -> None:
        self.selected = [row["name"] for row in await self.grid.get_selected_rows()]
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
        if len(names) > 1:
            with self.beside, card("Which of them is better"):
                waiting = ui.label("Comparing row by row …").classes("soft")
                place = ui.column().classes("content-part").props("aria-live=polite")
            await self._compare(names, waiting, place)

    async def _compare(self, names: list[str], waiting: ui.label, place: ui.column) -> None:
        """The runs against the first of them, on the rows that all answered."""
        try:
            found: RunsCompared | UserError = await work(_compared, self.board, names)
        except UserError as error:
            found = error
        if place.is_deleted:  # others were selected meanwhile
            return
        waiting.delete()
        with place:
            if isinstance(found, UserError):
                ui.label(f"Not to be compared: {found}").classes("soft wrap")
                return
            first = found.runs[0].name
            for metric in found.metrics:
                heading(metric.label, 3)
                forest(
                    [
                        Versus(
                            run.name,
                            run.against_first[metric.name],
                            metric.share,
                            metric.higher_is_better,
                        )
                        for run in found.runs
                        if run.against_first
                    ],
                    first,
                )
            ui.label(
                f"{found.rows:,} rows that all of them answered, paired; intervals of 95% over them"
            ).classes("soft small")
            table(
                ("run", *(metric.label for metric in found.metrics)),
                [
                    (run.name, *(interval(run.scores[m.name], m.share) for m in found.metrics))
                    for run in found.runs
                ],
                numbers=range(1, len(found.metrics) + 1),
                name="Scores of the selected runs",
            )

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


def _compared(board: Board, names: list[str]) -> "RunsCompared":
    from luthier.api import compare_runs

    return compare_runs([board.folders.run(name) for name in names])


def _grid() -> dict[str, Any]:
    number = {"type": "rightAligned"}
    return {
        "columnDefs": [
            {
                "field": "name",
                "headerName": "Run",
                "minWidth": 150,
                "flex": 2,
                ":cellRenderer": _NAME,
            },
            {"field": "verdict", "headerName": "Better?", "width": 185, ":cellRenderer": _VERDICT},
            {"field": "state", "headerName": "State", "width": 125, ":cellRenderer": _PILL},
            {
                "field": "forgetting",
                "headerName": "Forgetting",
                "width": 145,
                ":cellRenderer": _PILL,
            },
            {
                "field": "validation",
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
        "defaultColDef": {"sortable": True, "resizable": True},
        "rowModelType": "infinite",
        "cacheBlockSize": MOST,
        "infiniteInitialRowCount": 1,
        "context": {"text": ""},
        ":datasource": _SOURCE,
        "rowHeight": _ROW,
        "headerHeight": _HEAD,
        ":getRowId": "p => p.data.name",
        "rowSelection": {
            "mode": "multiRow",
            "enableClickSelection": False,
            "headerCheckbox": False,
        },
        "selectionColumnDef": {"headerName": "✓", "width": 52, "sortable": False},
        ":onGridSizeChanged": _NARROW,
        "ensureDomOrder": True,
        "suppressFieldDotNotation": True,
    }


def run_address(name: str) -> str:
    """The page of a run."""
    return f"/run/{quote(name, safe='')}"
