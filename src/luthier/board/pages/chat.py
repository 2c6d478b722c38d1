"""Chat with base and tuned side by side; what a person prefers becomes training data."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

from nicegui import run as background
from nicegui import ui
from starlette.requests import Request

from luthier.board.look import card, failure, frame
from luthier.board.models import Speaker
from luthier.board.pages.runs import LISTING
from luthier.board.preferences import prefer
from luthier.board.state import Board
from luthier.board.work import work
from luthier.errors import UserError

_EVERY = 0.1  # seconds between two updates of an answer
_MOST = 4  # runs at once
_MOST_OFFERED = 500  # runs to choose from, those that changed last


def add(board: Board) -> None:
    """Register the page."""

    @ui.page("/chat", response_timeout=LISTING)
    async def show(request: Request, run: str = "") -> None:
        rows = await background.io_bound(board.index.rows)
        names = [row.name for row in rows or [] if row.state == "finished"][:_MOST_OFFERED]
        if run not in names and _is_finished(
            board, run
        ):  # of a comparison, a sweep, or an older one
            names.insert(0, run)
        with frame(request, "Chat", "/chat"):
            _Chat(board, run).build(names)


def _is_finished(board: Board, name: str) -> bool:
    try:
        return board.folders.run(name).finished
    except UserError:
        return False


@dataclass
class _Voice:
    """One column: who answers, and the conversation as it went there."""

    name: str
    speaker: Speaker
    turns: list[dict[str, Any]] = field(default_factory=list)


class _Chat:
    def __init__(self, board: Board, chosen: str) -> None:
        self.board = board
        self.chosen = [chosen] if chosen else []
        self.voices: list[_Voice] = []
        self.busy = False
        self.stopping = False

    def build(self, names: list[str]) -> None:
        if not names:
            with ui.column().classes("part empty"):
                ui.label("There is no finished run to talk to yet.")
                ui.link("Start one", "/new")
            return
        chosen = [name for name in self.chosen if name in names] or names[:1]
        with card("Who answers"):
            with ui.element("div").classes("line"):
                self.runs = ui.select(
                    names, value=chosen, label="Runs", multiple=True, with_input=True
                )
                self.runs.props(f"dense outlined use-chips max-values={_MOST}").classes("grow")
                self.base = ui.switch("the base beside them", value=True)
            with ui.element("div").classes("line under-bubble"):
                ui.label("Scale of the adapter").classes("small")
                self.scale = (
                    ui.slider(min=0, max=2, step=0.1, value=1.0)
                    .props('label-always aria-label="Scale of the adapter"')
                    .classes("grow")
                )
                ui.label("0 is the base, 1 as trained").classes("soft small")
            with ui.element("div").classes("line"):
                self.system = ui.input("System prompt").props("dense outlined").classes("grow")
                self.temperature = ui.number(
                    "Temperature", value=0.0, min=0, max=2, step=0.1
                ).props("dense outlined")
                self.longest = (
                    ui.number("Longest answer, in tokens", value=256, min=1, max=4096)
                    .props("dense outlined")
                    .classes("wide-figure")
                )
                ui.button("New conversation", on_click=self._restart).props(
                    "flat no-caps dense"
                ).classes("quiet")
        for control in (self.runs, self.base, self.scale, self.system):
            control.on_value_change(self._restart)
        self.talk = ui.column().classes("content-part").props("aria-live=polite")
        with ui.element("section").classes("part"):
            with ui.element("div").classes("line"):
                self.question = (
                    ui.textarea("Your question").props("outlined autogrow dense").classes("grow")
                )
                self.question.on(
                    "keydown.enter",
                    self._ask,
                    js_handler="(e) => { if (!e.shiftKey) { e.preventDefault(); emit(); } }",
                )
                self.send = ui.button("Ask", icon="send", on_click=self._ask).props(
                    "no-caps unelevated color=filled"
                )
                self.halt = ui.button("Stop", icon="stop", on_click=self._stop).props(
                    "flat no-caps color=negative"
                )
                self.halt.set_visibility(False)
            self.kept = ui.element("div").classes("soft small")
        self._restart()
        self._count()

    def _restart(self) -> None:
        self.talk.clear()
        self.voices = []

    def _stop(self) -> None:
        self.stopping = True

    def _assemble(self) -> list[_Voice]:
        names = list(self.runs.value or [])[:_MOST]
        if not names:
            raise UserError("choose a run")
        found = [self.board.folders.run(name) for name in names]
        voices = [_Voice("base", Speaker(found[0], base=True))] if self.base.value else []
        scale = round(float(self.scale.value), 2)
        return voices + [
            _Voice(name, Speaker(run, scale)) for name, run in zip(names, found, strict=True)
        ]

    async def _ask(self) -> None:
        text = (self.question.value or "").strip()
        if not text or self.busy:
            return
        self.busy, self.stopping = True, False
        self.send.disable()
        self.halt.set_visibility(True)
        try:
            self.voices = self.voices or self._assemble()
            self.question.set_value("")
            await self._exchange(text)
        except UserError as error:
            with self.talk:
                failure(error)
        finally:
            self.busy = False
            self.send.enable()
            self.halt.set_visibility(False)

    async def _exchange(self, text: str) -> None:
        voices = self.voices  # a change of who answers begins a new conversation meanwhile
        before = [list(voice.turns) for voice in voices]
        opening = [{"role": "system", "content": self.system.value}] if self.system.value else []
        with self.talk, ui.element("section").classes("part"):
            ui.label(text).classes("text").props("role=heading aria-level=2")
            with ui.element("div").classes("columns"):
                places = [self._place(voice) for voice in voices]
            below = ui.element("div").classes("line")
        asked = {"role": "user", "content": text}
        answers = []
        for voice, place in zip(voices, places, strict=True):
            place.set_text("…")
            answers.append(await self._answer(voice, [*opening, *voice.turns, asked], place))
        for voice, answer in zip(voices, answers, strict=True):
            voice.turns += [asked, {"role": "assistant", "content": answer}]
        if len(voices) > 1:
            prompts = [[*opening, *turns, asked] for turns in before]
            with below:
                self._preferences(voices, prompts, answers, below)

    def _place(self, voice: _Voice) -> ui.label:
        side = "base" if voice.speaker.base else "tuned"
        with ui.element("div").classes(f"turn of-{side}"):
            ui.label(voice.name).classes("soft small wrap")
            return ui.label("").classes("text")

    async def _answer(self, voice: _Voice, turns: list[dict[str, Any]], place: ui.label) -> str:
        """Stream one answer into its column."""
        pieces: list[str] = []

        def on_text(text: str) -> None:
            pieces.append(text)
            if self.stopping:
                raise _Stopped

        longest = int(self.longest.value or 256)
        temperature = float(self.temperature.value or 0.0)

        def speak() -> str:
            from luthier.api import Sampling

            sampling = Sampling(longest, temperature, top_p=0.9 if temperature else 1.0)
            try:
                return self.board.shelf.answer(voice.speaker, turns, sampling, on_text)
            except _Stopped:
                return "".join(pieces)

        answering = asyncio.ensure_future(work(speak))
        while not answering.done():
            await asyncio.wait({answering}, timeout=_EVERY)
            if pieces:
                place.set_text("".join(pieces))
        answer = answering.result()
        place.set_text(answer if answer.strip() else "(nothing that can be seen)")
        return answer

    def _preferences(
        self,
        voices: list[_Voice],
        prompts: list[list[dict[str, Any]]],
        answers: list[str],
        below: ui.element,
    ) -> None:
        """Which answer is best; it is kept as chosen, each other one as rejected."""
        ui.label("Which answer is best?").classes("small")
        for number, voice in enumerate(voices):

            def keep(number: int = number, name: str = voice.name) -> None:
                try:
                    count = prefer(self.board.folders, prompts, answers, number)
                except UserError as error:
                    ui.notify(str(error))
                    return
                below.clear()
                with below:
                    said = (
                        f"{count} kept"
                        if count
                        else "the answers are the same, or follow other answers: nothing to learn"
                    )
                    ui.label(f"{name} is preferred: {said}").classes("small")
                self._count()

            button = ui.button(voice.name, icon="thumb_up", on_click=keep)
            button.props(
                f'flat no-caps dense aria-label="{"The base" if voice.speaker.base else "Tuned"} answer {number + 1} is best"'
            ).classes("quiet")

    def _count(self) -> None:
        self.kept.clear()
        path = self.board.folders.preferences
        if path.is_file():
            with self.kept:
                count = path.read_bytes().count(b"\n")
                said = f"{count:,} preference{'' if count == 1 else 's'} so far"
                ui.link(f"{said}, as rows for preference training", "/preferences")


class _Stopped(Exception):
    """The person wants no more of this answer."""
