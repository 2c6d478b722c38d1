"""One run: what it does now, what it took, and whether it is better."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from nicegui import run as background
from nicegui import ui
from pydantic import BaseModel
from starlette.requests import Request

from luthier.board.colours import Palette
from luthier.board.curves import CHARTS, options, points
from luthier.board.following import Followed
from luthier.board.index import State, state_of
from luthier.board.look import (
    card,
    duration,
    failure,
    frame,
    gigabytes,
    heading,
    palette,
    pill,
)
from luthier.board.pages.results import show_answer, show_evaluation, show_plan, show_samples
from luthier.board.parts import bar, table
from luthier.board.state import Board
from luthier.errors import UserError
from luthier.records import MetricsLine
from luthier.run import Run

_EVERY = 1.0  # seconds between two looks
_REST = 20  # times what drawing took, before it is done again
_MOST_TOLD = 40  # notes
_MOST_FILES = 400
_TAIL = 6_000  # characters of what a process printed


class Told(BaseModel):
    """A line of events.jsonl: those of its fields that the page shows."""

    event: str
    time: str = ""
    text: str = ""
    warning: bool = False
    reason: str = ""
    total: int | None = None


def add(board: Board) -> None:
    """Register the page."""

    @ui.page("/run/{name}")
    def show(request: Request, name: str) -> None:
        with frame(request, name):
            try:
                found = board.folders.run(name)
            except UserError as error:
                starting = board.folders.starting(name)
                if starting is None:
                    failure(error)
                else:
                    _show_start(starting)
                return
            _RunPage(board, name, found, palette(request)).build()


def _has_points(drawn: dict[str, Any]) -> bool:
    """Whether a chart has something to show: not each run measures everything."""
    return any(series["data"] for series in drawn["series"])


class _RunPage:
    def __init__(self, board: Board, name: str, run: Run, colours: Palette) -> None:
        self.board = board
        self.address = quote(name, safe=":")  # of a run in a study, the study's name is in it
        self.run = run
        self.colours = colours
        self.metrics = Followed(MetricsLine, run.metrics_path)
        self.events = Followed(Told, run.events_path)
        self.metrics.grew()
        self.events.grew()
        self.state: State = state_of(run)
        self.records = self._stamp()
        self.undrawn = False  # whether there are points that the charts do not show
        self.draw_after = 0.0

    def build(self) -> None:
        with ui.element("div").classes("part"):
            # Apart from the figures, which are made anew each second: a button that goes away under
            # a finger, or under the keyboard's focus, does nothing.
            self.head = ui.element("div").classes("line")
            self.said = ui.column().classes("content-part").props("aria-live=polite")
        self.answer = ui.column().classes("content-part")
        self.figures = ui.element("section").classes("part")
        self.results = ui.column().classes("content-part")
        with card("Curves"), ui.element("div").classes("charts"):
            self.charts = []
            for chart in CHARTS:
                with ui.element("div") as place:
                    heading(chart.title, 3)
                    ui.label(chart.about).classes("soft small")
                    drawn = ui.echart(self._options(chart)).classes("chart")
                    drawn.props(f'role=img aria-label="{chart.title} by step: {chart.about}"')
                    self.charts.append((chart, drawn, place))
                    place.set_visibility(_has_points(drawn.options))
        self.told = ui.element("section").classes("part")
        with card("Settings and files"):
            self._settings()
        self._show_state()
        self._show_figures()
        self._show_results()
        self._show_told()
        ui.timer(_EVERY, self._look, immediate=False)

    def _options(self, chart: Any) -> dict[str, Any]:
        series = [
            (
                line.name,
                points(self.metrics.records, line.value),
                getattr(self.colours, line.colour),
            )
            for line in chart.lines
        ]
        return options(series, self.colours, percent=chart.percent)

    async def _look(self) -> None:
        """What has happened since the last look goes to the browser."""
        moved = await background.io_bound(self.metrics.grew)
        told = await background.io_bound(self.events.grew)
        state, records = state_of(self.run), self._stamp()
        if moved or told:
            self._show_figures()
        self.undrawn = self.undrawn or bool(moved)
        if self.undrawn and time.monotonic() >= self.draw_after:
            self._draw()
        if state != self.state:
            self.state = state
            self._show_state()
            self._show_figures()
        if told:
            self._show_told()
        if records != self.records:
            self.records = records
            self._show_results()

    def _draw(self) -> None:
        """All charts anew; a long run draws less often, so that it leaves the machine to training."""
        began = time.monotonic()
        for chart, drawn, place in self.charts:
            drawn.options.update(self._options(chart))
            drawn.update()
            place.set_visibility(_has_points(drawn.options))
        self.undrawn = False
        self.draw_after = time.monotonic() + _REST * (time.monotonic() - began)

    def _stamp(self) -> tuple[float, ...]:
        """Changes when a record does."""
        paths = (self.run.plan_path, self.run.measured_path, self.run.evaluation_path)
        return tuple(path.stat().st_mtime if path.is_file() else 0.0 for path in paths)

    def _show_state(self) -> None:
        self.head.clear()
        self.said.clear()
        with self.head:
            pill(self.state)
            ui.element("div").classes("grow")
            self._actions()
        with self.said:
            if self.state == "failed":
                reasons = [e.reason for e in self.events.records if e.event == "stopped"]
                failure(UserError(reasons[-1] if reasons else "it ended without a word"))
            self._printed()

    def _show_figures(self) -> None:
        self.figures.clear()
        last = self.metrics.records[-1] if self.metrics.records else None
        totals = [e.total for e in self.events.records if e.event == "started" and e.total]
        step = last.step if last else 0
        with self.figures:
            if totals:
                with ui.element("div").classes("line"):
                    ui.label(f"step {step:,} of {totals[-1]:,}").classes("num")
                    if self.state == "running" and last and step:
                        left = last.seconds * (totals[-1] - step) / step
                        ui.label(f"about {duration(left)} left").classes("soft num")
                if self.state != "finished":
                    bar(step / totals[-1])
            if last is not None:
                self._facts(last)

    def _facts(self, last: MetricsLine) -> None:
        def latest(name: str) -> float | None:
            found = (getattr(line, name) for line in reversed(self.metrics.records))
            return next((value for value in found if value is not None), None)

        loss, validation = latest("loss"), latest("eval_loss")
        speed, probe = latest("tokens_per_second"), latest("eval_probe_accuracy")
        facts = {
            "training loss": "–" if loss is None else f"{loss:.4f}",
            "validation loss": "–" if validation is None else f"{validation:.4f}",
            "general questions": "–" if probe is None else f"{probe:.0%} right",
            "tokens per second": "–" if speed is None else f"{speed:,.0f}",
            "memory": gigabytes(last.memory_bytes),
            "time": duration(last.seconds),
        }
        with ui.element("div").classes("facts"):
            for name, value in facts.items():
                with ui.element("div").classes("fact"):
                    ui.label(name).classes("soft small")
                    ui.label(value).classes("value")
        skipped = sum(line.skipped or 0 for line in self.metrics.records)
        if skipped:
            ui.label(
                f"{skipped:,} steps were skipped: their loss or gradient was non-finite."
            ).classes("small")
        if self.metrics.damaged:
            ui.label(
                f"{self.metrics.damaged:,} lines of {self.run.metrics_path.name} are damaged and not shown."
            ).classes("small")

    def _actions(self) -> None:
        if self.state == "running":
            _button("Stop", "stop", lambda: self._do(self._stop)).props("color=negative")
        elif self.state == "finished":
            _button("Evaluate", "rule", lambda: self._do(self._evaluate))
            _button("Chat", "forum", lambda: ui.navigate.to(f"/chat?run={self.address}"))
            if self.run.report_path.is_file():
                ui.link("Report", f"/report/{self.address}", new_tab=True)
        else:
            _button("Resume", "play_arrow", lambda: self._do(self._resume))
        _button("New run like this", "content_copy", self._copy)

    async def _do(self, action: Callable[[], str]) -> None:
        """Do it beside the page, and say what happened."""
        try:
            said = await background.io_bound(action)
        except UserError as error:
            with self.said:
                failure(error)
            return
        ui.notify(said)
        self.state = state_of(self.run)
        self._show_state()

    def _stop(self) -> str:
        from luthier.api import stop_run

        stop_run(self.run)
        return "The process was asked to stop; training saves a checkpoint first."

    def _resume(self) -> str:
        from luthier.api import start_training

        self.run.require_trust(to_train=True)
        start_training(self.run.recipe(), self.run)
        return "The run resumes from its last checkpoint."

    def _evaluate(self) -> str:
        from luthier.api import start_evaluation

        start_evaluation(self.run)
        return "The evaluation runs; its results appear here."

    def _copy(self) -> None:
        try:
            recipe = self.run.read_recipe().changed(run={"name": None})
        except UserError as error:
            with self.said:
                failure(error)
            return
        ui.navigate.to(self.board.draft(recipe.to_yaml()))

    def _show_results(self) -> None:
        self.answer.clear()
        self.results.clear()
        try:
            evaluation = self.run.evaluation()
            plan = self.run.plan()
            measured = self.run.measured() if self.run.finished else None
        except UserError as error:
            with self.answer:
                failure(error)
            return
        with self.answer:
            if evaluation is not None:
                show_answer(evaluation)
            elif measured is not None:
                with ui.element("section").classes("answer"):
                    ui.label("Nobody knows yet whether it is better: it has not been evaluated.")
        with self.results:
            if evaluation is not None:
                show_evaluation(evaluation)
                show_samples(self.run, evaluation)
            if plan is not None:
                show_plan(plan, measured)

    def _show_told(self) -> None:
        self.told.clear()
        notes = [e for e in self.events.records if e.event == "note"]
        with self.told:
            heading("What happened")
            if not notes:
                ui.label("Nothing worth a note.").classes("soft")
            if len(notes) > _MOST_TOLD:
                ui.label(
                    f"the last {_MOST_TOLD} of {len(notes)} notes; all are in events.jsonl"
                ).classes("soft small")
            for note in notes[-_MOST_TOLD:]:
                with ui.element("div").classes("line"):
                    ui.label(note.time[11:19]).classes("soft small num")
                    if note.warning:
                        pill("warning")
                    ui.label(note.text).classes("wrap grow")

    def _printed(self) -> None:
        if self.run.output_path.is_file():
            with ui.element("details"):
                with ui.element("summary"):
                    ui.label("What the process printed").classes("as-text")
                _show_printed(self.run)

    def _settings(self) -> None:
        with ui.element("details"):
            with ui.element("summary"):
                ui.label("Recipe").classes("as-text")
            try:
                text = self.run.recipe_path.read_text("utf-8", "replace")
            except OSError as error:
                text = str(error)
            ui.label(text).classes("mono boxed").props("tabindex=0")
        with ui.element("details"):
            with ui.element("summary"):
                ui.label("Files").classes("as-text")
            files = list(self.board.folders.files(self.run))
            table(
                ("file", "size"),
                [(self._link(path), _size(path)) for path in files[:_MOST_FILES]],
                numbers=(1,),
            )
            if len(files) > _MOST_FILES:
                ui.label(f"and {len(files) - _MOST_FILES:,} more").classes("soft small")

    def _link(self, path: Path) -> Callable[[], Any]:
        relative = path.relative_to(self.run.root).as_posix()
        address = f"/file/{self.address}/{quote(relative)}"
        return lambda: ui.link(relative, address)


def _show_start(run: Run) -> None:
    """A run whose process has not written its settings yet, or could not begin."""
    place = ui.element("section").classes("part").props("aria-live=polite")

    def look() -> None:
        if run.recipe_path.is_file():
            ui.navigate.reload()
            return
        going = run.worker() is not None
        place.clear()
        with place:
            with ui.element("div").classes("line"):
                pill("running" if going else "failed")
                ui.label("The process starts." if going else "The run could not begin.")
            _show_printed(run)
            if not going:
                ui.button("Back", on_click=ui.navigate.back).props("flat no-caps").classes("quiet")

    ui.timer(_EVERY, look)


def _show_printed(run: Run) -> None:
    """What a process that was started in the background had to say."""
    try:
        text = run.output_path.read_bytes()[-_TAIL:].decode("utf-8", "replace").strip()
    except OSError:
        return
    if text:
        ui.label(text).classes("mono boxed").props("tabindex=0")


def _size(path: Path) -> str:
    size = float(path.stat().st_size)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:,.0f} {unit}"
        size /= 1024
    return f"{size:,.2f} GiB"


def _button(text: str, icon: str, do: Callable[[], Any]) -> ui.button:
    return ui.button(text, icon=icon, on_click=do).props("flat no-caps dense").classes("quiet")
