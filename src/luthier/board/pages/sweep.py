"""Sweeps: whether the best trial is better, and what mattered."""

from typing import Any

from nicegui import run as background
from nicegui import ui

from luthier.board.colours import Palette
from luthier.board.curves import options
from luthier.board.dots import Dot, Group, scatter
from luthier.board.folders import Study
from luthier.board.index import Summary, summarise
from luthier.board.look import card, duration, failure, heading, pill
from luthier.board.pages.studies import GoingOn, add_pages, run_link
from luthier.board.parts import Cell, Versus, bar, forest, table
from luthier.board.state import Board
from luthier.errors import UserError
from luthier.records import Sweep
from luthier.records.sweep import Choice, Dimension, SweepTrial

_EVERY = 3.0  # seconds between two looks
_FAR = 3.0  # times the middle trial's distance from the lowest loss: beyond it a plot would be flat


def add(board: Board) -> None:
    """Register the pages."""

    async def show(study: Study, colours: Palette) -> None:
        if study.folder.record_path.is_file():
            _SweepPage(board, study, colours).build()
        else:
            await GoingOn(study, colours, study.folder.record_path.is_file).build()

    add_pages(board, "/sweep", "sweep", lambda study: study.is_sweep, _told, show)


def _told(study: Study) -> tuple[str, str]:
    from luthier.api import verdict_text

    sweep = Sweep.from_file(study.folder.record_path)
    return _word(study, sweep), verdict_text(sweep)


def _word(study: Study, sweep: Sweep) -> str:
    """The verdict; before it, what the sweep does."""
    if sweep.ended is None:
        return "running" if study.folder.worker() is not None else "stopped"
    return sweep.verdict.test.verdict if sweep.verdict is not None else "no evidence"


class _SweepPage:
    def __init__(self, board: Board, study: Study, colours: Palette) -> None:
        self.board = board
        self.study = study
        self.colours = colours
        self.sweep = Sweep.from_file(study.folder.record_path)
        self.running = self._progress()
        self.word = _word(study, self.sweep)

    def build(self) -> None:
        self.answer = ui.column().classes("content-part").props("aria-live=polite")
        with ui.element("div").classes("charts"):
            self.by_trial = self._chart("Loss by trial, and the lowest so far", self._by_trial())
            self.curves = self._chart("Validation loss on the way", self._curves())
        self.keys = ui.column().classes("content-part")
        self.trials = ui.column().classes("content-part")
        self.best = ui.column().classes("content-part")
        self._show()
        if self.sweep.ended is None:
            self.timer = ui.timer(_EVERY, self._look, immediate=False)

    def _chart(self, title: str, drawn: dict[str, Any]) -> ui.echart:
        with card(title):
            chart = ui.echart(drawn).classes("chart tall")
            chart.props(f'role=img aria-label="{title}; the table of trials has the figures"')
        return chart

    async def _look(self) -> None:
        """What has changed since the last look."""
        try:
            found = await background.io_bound(Sweep.from_file, self.study.folder.record_path)
        except UserError:
            return
        progress = await background.io_bound(self._progress)
        if found is None or progress is None:
            return
        word = _word(self.study, found)
        if (found, progress, word) == (self.sweep, self.running, self.word):
            return
        self.sweep, self.running, self.word = found, progress, word
        for chart, drawn in ((self.by_trial, self._by_trial()), (self.curves, self._curves())):
            chart.options.update(drawn)
            chart.update()
        self._show()
        if found.ended is not None:
            self.timer.cancel()

    def _progress(self) -> dict[int, Summary]:
        """How far the trials are that run now."""
        found = {}
        for trial in self.sweep.trials:
            if trial.state == "running":
                try:
                    run = self.board.folders.run(
                        f"{self.study.name}:{trial.folder.rpartition('/')[2]}"
                    )
                except UserError:  # not begun yet, or on another machine
                    continue
                found[trial.number] = summarise(run)
        return found

    def _show(self) -> None:
        self.answer.clear()
        with self.answer:
            self._verdict()
        self.keys.clear()
        with self.keys:
            self._slices()
        self.trials.clear()
        with self.trials:
            self._table()
        self.best.clear()
        with self.best:
            self._recipe()

    def _verdict(self) -> None:
        from luthier.api import verdict_text

        sweep = self.sweep
        with ui.element("section").classes(f"answer {self.word.replace(' ', '-')}"):
            with ui.element("div").classes("big"):
                if sweep.ended is None:
                    pill(self.word)
                    done = sum(trial.state != "running" for trial in sweep.trials)
                    ui.label(f"{done} of {sweep.forecast.trials} trials are over")
                else:
                    ui.label("Is the best trial better than the recipe as it was given?")
                    pill(self.word)
            if sweep.ended is None:
                bar(done / max(1, sweep.forecast.trials))
            if sweep.verdict is not None:
                forest(
                    [
                        Versus(
                            f"trial {sweep.verdict.trial}",
                            sweep.verdict.test,
                            share=False,
                            higher_is_better=False,
                        )
                    ],
                    "the recipe as it was given",
                )
            if sweep.ended is not None or sweep.verdict is not None:
                ui.label(verdict_text(sweep)).classes("wrap")
            if sweep.ended is not None:
                ui.label(
                    f"{sweep.choosing_rows:,} validation rows chose among the trials, "
                    f"{sweep.judging_rows:,} others judged the best. It ended because {sweep.ended}."
                ).classes("soft small wrap")
        facts = {
            "model": sweep.model.rstrip("/").rpartition("/")[2],
            "method": sweep.method,
            "training rows": f"{sweep.train_rows:,}",
            "trials": f"{len(sweep.trials):,}",
            "time": duration(sweep.seconds),
            "cost": "–" if sweep.cost is None else f"${sweep.cost:,.2f}",
        }
        with ui.element("section").classes("part facts"):
            for name, value in facts.items():
                with ui.element("div").classes("fact"):
                    ui.label(name).classes("soft small")
                    ui.label(value).classes("value")

    def _top(self) -> float | None:
        """Where plots end: one trial that went wrong would flatten all others."""
        losses = sorted(t.loss for t in self.sweep.trials if t.loss is not None)
        if not losses:
            return None
        low, middle = losses[0], losses[len(losses) // 2]
        return min(losses[-1], middle + _FAR * (middle - low)) if middle > low else losses[-1]

    def _grouped(self, x: Any) -> list[Group]:
        """Trials by what is special about them, at ``x`` of each; those without one left out."""
        kinds: dict[str, list[Dot]] = {"finished": [], "pruned": [], "default": [], "best": []}
        for trial in self.sweep.trials:
            at = x(trial)
            if trial.loss is not None and at is not None and trial.state != "failed":
                said = f"trial {trial.number}: {trial.loss:.4f}"
                kinds[self._kind(trial)].append(Dot(at, trial.loss, said))
        colours = self._colours()
        return [
            Group(
                name,
                colours[name],
                dots,
                hollow=name == "pruned",
                size=14 if name in _MARKED else 9,
            )
            for name, dots in kinds.items()
            if dots
        ]

    def _colours(self) -> dict[str, str]:
        blue, amber, green, *_ = self.colours.runs
        return {"finished": blue, "pruned": self.colours.soft, "default": amber, "best": green}

    def _kind(self, trial: SweepTrial) -> str:
        if trial.number == self.sweep.best:
            return "best"
        if trial.default:
            return "default"
        return "pruned" if trial.state == "pruned" else "finished"

    def _by_trial(self) -> dict[str, Any]:
        lowest: list[tuple[float, float]] = []
        for trial in self.sweep.trials:
            if trial.state == "finished" and trial.loss is not None:
                least = min(trial.loss, lowest[-1][1]) if lowest else trial.loss
                if lowest:
                    lowest.append((trial.number, lowest[-1][1]))
                lowest.append((trial.number, least))
        groups = self._grouped(lambda trial: trial.number)
        line = Group("lowest so far", self._colours()["best"], [], line=lowest)
        return scatter([line, *groups], self.colours, x_name="trial", most=self._top())

    def _curves(self) -> dict[str, Any]:
        colours = self._colours()
        series = []
        for trial in sorted(
            self.sweep.trials, key=lambda t: (t.number == self.sweep.best, t.default)
        ):
            if trial.curve:
                drawn = [(float(n), loss) for n, loss in enumerate(trial.curve, 1)]
                series.append((f"trial {trial.number}", drawn, colours[self._kind(trial)]))
        found = options(series, self.colours)
        for one in found["series"]:
            one["lineStyle"]["opacity"] = 0.8
        top = self._top()
        if top is not None and any(max(t.curve, default=0.0) > 2 * top for t in self.sweep.trials):
            found["yAxis"]["max"] = float(f"{2 * top:.2g}")
        found["legend"]["show"] = False
        return found

    def _slices(self) -> None:
        sweep = self.sweep
        if sweep.importance:
            with card("What mattered", "the share of each key in being among the best trials"):
                most = max(sweep.importance.values()) or 1.0
                for key, share in sweep.importance.items():
                    with ui.element("div").classes("pair"):
                        ui.label(f"{key}: {share:.0%}").classes("num")
                        bar(share / most)
        if not any(trial.loss is not None for trial in sweep.trials):
            return
        with card("Loss by each key"), ui.element("div").classes("charts"):
            for dimension in sweep.space:
                with ui.element("div"):
                    heading(dimension.key, 3)
                    chart = ui.echart(self._slice(dimension)).classes("chart")
                    chart.props("role=img")
                    chart.props["aria-label"] = f"Loss of the trials by {dimension.key}"

    def _slice(self, dimension: Dimension) -> dict[str, Any]:
        if isinstance(dimension, Choice):
            groups = self._grouped(lambda t: _text(t.values.get(dimension.key)))
            choices = [text for choice in dimension.choices if (text := _text(choice)) is not None]
            return scatter(
                groups, self.colours, x_name=dimension.key, choices=choices, most=self._top()
            )
        groups = self._grouped(lambda t: _number(t.values.get(dimension.key)))
        return scatter(
            groups,
            self.colours,
            x_name=dimension.key,
            log=dimension.log,
            bounds=(dimension.low, dimension.high),
            most=self._top(),
        )

    def _table(self) -> None:
        from luthier.api import sweep_table

        heads, rows = sweep_table(self.sweep)
        trials = {str(trial.number): trial for trial in self.sweep.trials}
        there = {run.root.name for run in self.study.runs()}

        def first(trial: SweepTrial) -> Cell:
            folder = trial.folder.rpartition("/")[2]
            text = f"trial {trial.number}"
            return run_link(f"{self.study.name}:{folder}", text) if folder in there else text

        with card("Trials", "the best first"):
            first_key = len(heads) - len(self.sweep.space)
            words = {n for n, d in enumerate(self.sweep.space, first_key) if _has_words(d)}
            table(
                ("trial", "state", *heads[2:]),
                [(first(trials[row[0]]), self._state(trials[row[0]]), *row[2:]) for row in rows],
                numbers=[n for n in range(2, len(heads)) if n not in words],
            )

    def _state(self, trial: SweepTrial) -> Cell:
        def build() -> None:
            with ui.element("div").classes("line"):
                for word in (
                    *(["best"] if trial.number == self.sweep.best else []),
                    *(["default"] if trial.default else []),
                    *([trial.state] if trial.state != "finished" else []),
                ):
                    pill(word)
            progress = self.running.get(trial.number)
            if progress is not None and progress.steps:
                bar((progress.step or 0) / progress.steps)
                ui.label(f"step {progress.step or 0:,} of {progress.steps:,}").classes("soft small")
            if trial.why:
                ui.label(trial.why).classes("soft small wrap")

        return build

    def _recipe(self) -> None:
        if self.sweep.recipe is None or self.sweep.ended is None:
            return
        try:
            text = self.board.folders.best_recipe(self.study)
        except UserError as error:
            failure(error)
            return
        with card("The best trial as a recipe"):
            ui.label(text).classes("mono boxed").props("tabindex=0")
            ui.button(
                "New run from it",
                icon="arrow_forward",
                on_click=lambda: ui.navigate.to(self.board.draft(text)),
            ).props("no-caps unelevated color=filled").classes("self-start")


_MARKED = ("best", "default")


def _has_words(dimension: Dimension) -> bool:
    return isinstance(dimension, Choice) and any(_number(c) is None for c in dimension.choices)


def _text(value: Any) -> str | None:
    if value is None:
        return None
    return "+".join(map(str, value)) if isinstance(value, list) else str(value)


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None
