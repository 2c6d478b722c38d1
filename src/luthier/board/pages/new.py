"""A new run: model, data, recipe, plan, start."""

import asyncio
import re
from pathlib import Path

from nicegui import events, ui
from nicegui import run as background
from starlette.requests import Request

from luthier.board.form import Form
from luthier.board.look import card, failure, frame, palette
from luthier.board.pages.looking import DataView
from luthier.board.pages.planning import PlanView
from luthier.board.pages.runs import run_address
from luthier.board.state import Board
from luthier.board.work import work
from luthier.errors import UserError
from luthier.recipe import MethodName, Recipe, hub_dataset, parse_recipe
from luthier.run import claim_run

_LARGEST = 2 << 30  # bytes of an upload
_METHODS: tuple[MethodName, ...] = ("full", "lora", "qlora")


def add(board: Board) -> None:
    """Register the page."""

    @ui.page("/new")
    def show(request: Request, draft: int | None = None) -> None:
        with frame(request, "New run", "/new"):
            page = _New(board, request)
            try:
                if draft is not None and 0 <= draft < len(board.drafts):
                    page.fill(parse_recipe(board.drafts[draft]))
            except UserError as error:
                failure(error)
            page.build()


class _New:
    def __init__(self, board: Board, request: Request) -> None:
        self.board = board
        self.colours = palette(request)
        self.model = ""
        self.sources: list[str] = []
        self.form = Form(self._changed)
        self.plan = PlanView(self.colours, self.form)
        self.changes = 0

    def fill(self, recipe: Recipe) -> None:
        self.model = recipe.model.source
        self.sources = list(recipe.train_files)
        self.form.fill(recipe)

    def build(self) -> None:
        with card(
            "1. Model",
            "a name from the list, an id on the hub, or a folder that the board may read",
        ):
            self._models()
        with card("2. Data", "rows of questions and answers: .jsonl, .json, .csv, .parquet …"):
            self._data()
        with card("3. Recipe", "an empty field has the default that it shows"):
            self.form.build()
        with card("4. Plan", "the memory of one training step, simulated"):
            self.plan.build()
        with card(
            "5. Start", "a process of its own: it goes on when this page or the board is closed"
        ):
            self.said = ui.column().classes("content-part")
            with ui.element("div").classes("line"):
                ui.button("Start the run", icon="play_arrow", on_click=self._start).props(
                    "no-caps unelevated color=filled"
                )
                ui.button("Show the recipe", on_click=self._show).props("flat no-caps").classes(
                    "quiet"
                )
        self._changed()

    def _models(self) -> None:
        from luthier.api import KNOWN_MODELS

        known = [model for model in KNOWN_MODELS.values() if model.purpose == "language"]
        field = ui.input("Model", value=self.model, autocomplete=[model.name for model in known])
        field.props("outlined dense debounce=400").classes("grow")

        def choose(text: str) -> None:
            self.model = text.strip()
            self._changed()

        field.on_value_change(lambda e: choose(e.value or ""))
        for model in known:
            with ui.element("div").classes("line"):
                button = ui.button(
                    model.name, on_click=lambda name=model.name: field.set_value(name)
                )
                button.props("flat no-caps dense").classes("quiet")
                ui.label(
                    f"{model.parameters / 1e6:,.0f} million parameters, {model.licence}; {model.note}"
                ).classes("small")
                fits = ui.element("span").classes("line")
                ui.timer(
                    0.1, lambda n=model.parameters, place=fits: self._fits(n, place), once=True
                )

    async def _fits(self, parameters: int, place: ui.element) -> None:
        """Which methods have room on this machine, by the rule that `luthier advise` chooses by."""
        fits = await work(_fitting, parameters)
        with place:
            for method, room in fits.items():
                ui.label(f"{method} {'fits' if room else 'does not fit'}").classes("tag")

    def _data(self) -> None:
        with ui.element("div").classes("line"):
            field = ui.input("Path, several with commas", value=", ".join(self.sources))
            field.props("outlined dense debounce=400").classes("grow")
            field.on_value_change(lambda e: self._choose_data(e.value or ""))

            async def keep(event: events.UploadEventArguments) -> None:
                try:
                    path = self.board.folders.upload(event.file.name)
                except UserError as error:
                    ui.notify(str(error))
                    return
                await event.file.save(path)
                field.set_value(str(path))

            # Its own look has no names for those who cannot see it: a button opens it.
            upload = ui.upload(auto_upload=True, max_file_size=_LARGEST, on_upload=keep)
            upload.classes("unseen")
            button = ui.button("Upload a file", icon="upload_file").props("flat no-caps dense")
            button.classes("quiet").on(
                "click", js_handler=f"() => getElement({upload.id}).$refs.qRef.pickFiles()"
            )
        self.view = DataView(self.board.folders, lambda: (self.model, self.sources, self.form))
        self.view.build()

    def _choose_data(self, text: str) -> None:
        self.sources = [part.strip() for part in text.split(",") if part.strip()]
        self._changed()

    def _recipe(self) -> Recipe:
        if not self.model:
            raise UserError("choose a model")
        if not self.sources:
            raise UserError("choose data")
        for source in self.sources:
            if hub_dataset(source) is None:
                path = self.board.folders.readable(source)
                if not path.exists() and not any(c in source for c in "*?["):
                    raise UserError(f"there is no file {source}")
        return self.board.folders.check(self.form.recipe(self.model, self.sources))

    def _changed(self) -> None:
        """Plan again, once nothing has changed for a moment."""
        self.changes += 1
        seen = self.changes

        async def later() -> None:
            await asyncio.sleep(0.6)
            if seen == self.changes:
                try:
                    await self.plan.show(self._recipe())
                except UserError as error:
                    self.plan.say(str(error))

        ui.timer(0.01, later, once=True)

    def _show(self) -> None:
        self.said.clear()
        with self.said:
            try:
                text = self._recipe().to_yaml()
            except UserError as error:
                failure(error)
                return
            ui.label(text).classes("mono boxed").props("tabindex=0")

    async def _start(self) -> None:
        self.said.clear()
        try:
            name = await background.io_bound(self._begin)
        except UserError as error:
            with self.said:
                failure(error)
            return
        if name is not None:
            ui.navigate.to(run_address(name))

    def _begin(self) -> str:
        from luthier.api import start_training

        recipe = self._recipe()
        stem = re.sub(r"[^\w.-]+", "-", Path(self.sources[0]).stem).strip("-.") or "run"
        run = claim_run(recipe, stem)
        if run.finished:
            raise UserError(f"{run.root.name} has finished already; give the run another run.name")
        start_training(recipe, run)
        return run.root.name


def _fitting(parameters: int) -> dict[str, bool]:
    from luthier.api import find_target, memory_needed

    room = find_target().device.memory
    return {method: memory_needed(method, parameters / 1e9) <= room for method in _METHODS}
