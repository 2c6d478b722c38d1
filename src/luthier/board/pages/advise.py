"""Whether to fine-tune at all: the decision, its path lit as one answers."""

from typing import TYPE_CHECKING, Any

from nicegui import ui
from starlette.requests import Request

from luthier.board.look import failure, frame, heading
from luthier.board.parts import table
from luthier.board.state import Board
from luthier.errors import UserError

if TYPE_CHECKING:
    from luthier.api import Answers, Decision, Question

# What a question is called on the path, where its key says too little.
_CALLED = {
    "few_shot": "few-shot prompts",
    "reviewed": "data reviewed",
    "prompts_exhausted": "better prompts",
    "billions": "size of the model",
    "gpu_memory": "memory of the GPU",
}
_COSTS = ("prompt_tokens", "completion_tokens", "context_tokens", "queries")  # never asked here


def add(board: Board) -> None:
    """Register the page."""

    @ui.page("/advise")
    def show(request: Request) -> None:
        with frame(request, "Should I fine-tune?", "/advise"):
            _Advice(board).build()


class _Advice:
    def __init__(self, board: Board) -> None:
        self.board = board
        self.given: dict[str, Any] = {}

    def build(self) -> None:
        with ui.element("div").classes("columns"):
            self.place = ui.element("section").classes("part").props("aria-live=polite")
            self.route = ui.element("section").classes("part")
        self._show()

    def _show(self) -> None:
        from luthier.api import Decision, decide, parse_answers

        self.place.clear()
        self.route.clear()
        answers = parse_answers(self.given)
        found = decide(answers)
        with self.place:
            if isinstance(found, Decision):
                self._decided(answers, found)
            else:
                self._ask(found)
        with self.route:
            self._track(found)

    def _ask(self, question: "Question") -> None:
        heading(question.text)
        ui.label(f"Why this matters: {question.why}.").classes("soft small wrap")
        if question.many:
            boxes = {name: ui.checkbox(said or name) for name, said in question.choices.items()}
            self._next(lambda: self._answer(question, [n for n, box in boxes.items() if box.value]))
        elif question.choices:
            for name, said in question.choices.items():
                button = ui.button(
                    said or name, on_click=lambda name=name: self._answer(question, name)
                )
                button.props("no-caps outline align=left").classes("quiet")
        else:
            field = ui.input("Your answer").props("outlined dense autofocus")
            field.on("keydown.enter", lambda: self._answer(question, field.value))
            self._next(lambda: self._answer(question, field.value))

    def _next(self, do: Any) -> None:
        ui.button("Next", on_click=do).props("no-caps unelevated color=filled")

    def _answer(self, question: "Question", value: Any) -> None:
        from luthier.api import parse_answers

        if isinstance(value, str):
            value = value.strip() if question.choices else value.strip().replace(",", "")
        try:
            parse_answers(self.given | {question.key: value}, "not a valid answer")
        except UserError as error:
            with self.place:
                failure(error)
            return
        self.given[question.key] = value
        self._show()

    def _back_to(self, key: str) -> None:
        """Answer ``key`` again, and what was asked after it."""
        keys = list(self.given)
        self.given = {name: self.given[name] for name in keys[: keys.index(key)]}
        self._show()

    def _track(self, found: "Question | Decision") -> None:
        """The questions in their order: answered ones lit, each a way back."""
        from luthier.api import QUESTIONS, Decision

        heading("The path")
        decided = isinstance(found, Decision)
        with ui.element("ol").classes("route"):
            for key, question in QUESTIONS.items():
                if key in _COSTS or (decided and key not in self.given):
                    continue
                now = not decided and found.key == key  # type: ignore[union-attr]
                with ui.element("li").classes(
                    "stop" + (" lit" if key in self.given else " now" if now else "")
                ):
                    ui.label(_called(key)).classes("small")
                    if key in self.given:
                        with ui.element("div").classes("line"):
                            ui.label(_words(question, self.given[key]))
                            button = ui.button(
                                "change", on_click=lambda key=key: self._back_to(key)
                            )
                            button.props(
                                f'flat no-caps dense size=sm aria-label="Change the answer: {_called(key)}"'
                            ).classes("quiet")
            if isinstance(found, Decision):
                with ui.element("li").classes("stop lit end"):
                    ui.label(found.headline)

    def _decided(self, answers: "Answers", decision: "Decision") -> None:
        from luthier.api import alternatives, make_advised_recipe

        heading(f"The advice: {decision.headline}")
        table(
            ("rule", "what follows", "source"),
            [(step.rule, step.finding, step.source) for step in decision.path],
        )
        others = alternatives(answers, decision)
        if others:
            heading("What would change it", 3)
            table(
                ("answer", "if it were", "the advice"),
                [(_called(other.key), other.instead, other.outcome) for other in others],
            )
        if decision.choice is not None:
            recipe = make_advised_recipe(answers, decision, ["data.jsonl"])
            heading("A recipe to begin with", 3)
            ui.label(recipe).classes("mono boxed").props("tabindex=0")
            ui.button(
                "Go on to a new run",
                icon="arrow_forward",
                on_click=lambda: ui.navigate.to(self.board.draft(recipe)),
            ).props("no-caps unelevated color=filled")
        ui.button("Start over", on_click=self._again).props("flat no-caps dense").classes("quiet")

    def _again(self) -> None:
        self.given = {}
        self._show()


def _called(key: str) -> str:
    return _CALLED.get(key, key)


def _words(question: "Question", value: Any) -> str:
    names = value if isinstance(value, list) else [str(value)]
    return "; ".join(question.choices.get(name) or name for name in names)
