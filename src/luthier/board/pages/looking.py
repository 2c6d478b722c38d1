"""A look at data before they cost a run: the doctor's findings, and a row as the model sees it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from nicegui import ui

from luthier.board.folders import Folders
from luthier.board.form import Form
from luthier.board.look import failure, heading, pill
from luthier.board.parts import table
from luthier.board.work import work
from luthier.errors import UserError
from luthier.recipe import hub_dataset
from luthier.records import DataCheck

_EXAMPLES = 3  # rows of a finding
_MOST_TOKENS = 2_000  # shown of a row

Chosen = Callable[[], tuple[str, list[str], Form]]  # model, sources, form


class DataView:
    """Under the choice of data."""

    def __init__(self, folders: Folders, chosen: Chosen) -> None:
        self.folders = folders
        self.chosen = chosen
        self.row = 1

    def build(self) -> None:
        with ui.element("div").classes("line"):
            ui.button("Check the data", icon="troubleshoot", on_click=self._check).props(
                "flat no-caps dense"
            ).classes("quiet")
            ui.button(
                "Show a row as the model sees it", icon="visibility", on_click=lambda: self._turn(0)
            ).props("flat no-caps dense").classes("quiet")
        self.found = ui.column().classes("content-part").props("aria-live=polite")
        self.tokens = ui.column().classes("content-part").props("aria-live=polite")

    def _sources(self) -> list[str]:
        _, sources, _ = self.chosen()
        if not sources:
            raise UserError("choose data first")
        for source in sources:
            if hub_dataset(source) is None:
                self.folders.readable(source)
        return sources

    async def _check(self) -> None:
        self.found.clear()
        with self.found:
            waiting = ui.label("Reading the rows …").classes("soft")
        report: DataCheck | UserError
        try:
            report = await work(self._report)
        except UserError as error:
            report = error
        waiting.delete()
        with self.found:
            if isinstance(report, UserError):
                failure(report)
            else:
                self._show_report(report)

    def _report(self) -> DataCheck:
        from luthier.api import check_data

        model, _, form = self.chosen()
        length = form.values.get("data.max_length", "")
        return check_data(
            self._sources(),
            model=self._model(model) if model else None,
            max_length=int(length) if length.isdecimal() else 1024,
        )

    def _model(self, model: str) -> str:
        if Path(model).is_absolute() or model.startswith((".", "~")):
            self.folders.readable(model)
        return model

    def _show_report(self, report: DataCheck) -> None:
        with ui.element("div").classes("line"):
            pill(report.verdict)
            ui.label(
                f"{report.rows['read']:,} rows read, {report.rows['usable']:,} usable"
            ).classes("num")
            for file in report.files:
                ui.label(
                    f"{Path(file['file']).name}: {', '.join(file['formats']) or 'no known format'}"
                ).classes("soft small")
        if not report.findings:
            ui.label("No problems found.")
            return

        def where(examples: list[dict[str, Any]]) -> Callable[[], None]:
            def build() -> None:
                for example in examples[:_EXAMPLES]:
                    told = (str(example.get("row") or ""), str(example.get("detail") or ""))
                    ui.label(": ".join(text for text in told if text)).classes("small wrap")

            return build

        table(
            ("severity", "rows", "finding", "where", "what to do"),
            [
                (
                    lambda word=finding.severity: pill(word),  # type: ignore[misc]
                    f"{finding.count:,}",
                    finding.title,
                    where(finding.examples),
                    finding.remedy,
                )
                for finding in report.findings
            ],
            numbers=(1,),
        )

    async def _turn(self, by: int) -> None:
        wanted = max(1, self.row + by)
        try:
            shown = await work(self._encoded, wanted)
        except UserError as error:
            self.tokens.clear()
            with self.tokens:
                failure(error)
            return
        self.row = wanted
        self.tokens.clear()
        with self.tokens:
            self._show_row(shown)

    def _encoded(self, number: int) -> dict[str, Any]:
        from luthier.api import encode_row, resolve

        model, _, form = self.chosen()
        if not model:
            raise UserError("choose a model first: its tokenizer and template decide what it sees")
        source = self._sources()[0]
        return encode_row(
            source,
            number,
            resolve(self._model(model)).folder,
            form.values.get("data.template", "auto"),
            form.values.get("data.train_on", "completions"),
        )

    def _show_row(self, shown: dict[str, Any]) -> None:
        tokens = shown["tokens"]
        learned = sum(token["supervised"] for token in tokens)
        heading("A row as the model sees it", 3)
        with ui.element("div").classes("line"):
            ui.button("Previous", on_click=lambda: self._turn(-1)).props(
                "flat no-caps dense"
            ).classes("quiet")
            ui.button("Next", on_click=lambda: self._turn(1)).props("flat no-caps dense").classes(
                "quiet"
            )
            ui.label(
                f"row {self.row}, format {shown['format']}, template {shown['template']}: "
                f"{len(tokens):,} tokens, {learned:,} of them trained on (marked)"
            ).classes("small")
        with (
            ui.element("div")
            .classes("tokens boxed")
            .props('tabindex=0 role=region aria-label="Tokens of the row"')
        ):
            for token in tokens[:_MOST_TOKENS]:
                kind = "learned" if token["supervised"] else "context"
                text = token["text"].replace("\n", "⏎\n").replace("\t", "→")
                piece = ui.element("span").classes(kind + (" special" if token["special"] else ""))
                with piece:
                    ui.label(text).classes("as-text")
        if len(tokens) > _MOST_TOKENS:
            ui.label(f"the first {_MOST_TOKENS:,} of {len(tokens):,} tokens").classes("soft small")
