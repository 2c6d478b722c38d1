"""`luthier chat`."""

import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rich.live import Live
from rich.table import Table
from rich.text import Text

from luthier.cli.app import AdapterScale, app, err, out
from luthier.cli.generate import (
    Base,
    Compare,
    MaxNewTokens,
    RepetitionPenalty,
    RunPath,
    Seed,
    System,
    Temperature,
    TopK,
    TopP,
)
from luthier.cli.terminal import terminal
from luthier.cli.trusting import Trust
from luthier.cli.tuned import BaseModel, open_tuned
from luthier.errors import UserError
from luthier.files import user_path, write_jsonl

if TYPE_CHECKING:
    from prompt_toolkit.key_binding.key_processor import KeyPressEvent

    from luthier.api import Sampling, TunedModel

_HELP = """\
/base         show the base model's answer to the last question, side by side
/compare      both models answer from now on; /tuned goes back to the tuned one
/system TEXT  set the system prompt and start over; without TEXT, remove it
/reset        start a new conversation
/save FILE    write the conversation as a row that `luthier train` reads (.jsonl)
/help         show this list
/quit         end the chat, as Ctrl-D does
For several lines put \"\"\" before and after, or press Alt-Enter. Ctrl-C stops an answer."""


@app.command()
def chat(
    run_path: RunPath,
    system: System = None,
    max_new_tokens: MaxNewTokens = 512,
    temperature: Temperature = 0.7,
    top_p: TopP = 0.9,
    top_k: TopK = 0,
    repetition_penalty: RepetitionPenalty = 1.0,
    seed: Seed = None,
    base: Base = False,
    compare: Compare = False,
    adapter_scale: AdapterScale = 1.0,
    base_model: BaseModel = None,
    trust: Trust = False,
) -> None:
    """Chat with a tuned model; answers are streamed.

    `/base` shows the base model's answer side by side; `/compare` does so from now on. `/system TEXT`, `/reset`, `/save FILE`, `/help`; `/quit` or Ctrl-D ends. In a pipe, each
    line of stdin is a turn.

    Example: `luthier chat runs/first --system "Answer in one line."`
    """
    run = open_tuned(run_path, base_model, trust)
    from luthier.api import Sampling, load_tuned

    if not run.provenance().learned_turns:
        raise UserError(
            f"{run.root} was trained on plain text, not on chats; use `luthier generate`"
        )
    sampling = Sampling(max_new_tokens, temperature, top_p, top_k, repetition_penalty, seed)
    with terminal() as on_event:
        models = load_tuned(run, adapter_scale, on_event)
    err.print("/help lists the commands", style="dim")
    sides = ["base", "tuned"] if compare else ["base"] if base else ["tuned"]
    Conversation(models, sampling, system, sides).follow(_turns())


@dataclass
class Conversation:
    """The conversation so far, and which model answers next.

    Attributes:
        sides: of `base` and `tuned`; the conversation goes on from the last one's answer.
        turns: questions and answers, without the system prompt.
    """

    models: "TunedModel"
    sampling: "Sampling"
    system: str | None
    sides: list[str]
    turns: list[dict[str, str]] = field(default_factory=list)
    saved: set[Path] = field(default_factory=set)

    def follow(self, lines: Iterator[str]) -> None:
        """Answer each line, or do what it says, until there are no more."""
        for line in lines:
            command, _, rest = line.partition(" ")
            if command in ("/quit", "/exit"):
                return
            if not command.startswith("/"):
                self._converse(line)
            elif command == "/base":
                self._base_beside_last()
            elif command == "/compare":
                self.sides = ["base", "tuned"]
            elif command == "/tuned":
                self.sides = ["tuned"]
            elif command == "/reset":
                self.turns = []
            elif command == "/system":
                self.system, self.turns = rest.strip() or None, []
            elif command == "/save":
                self._save(rest.strip())
            elif command == "/help":
                err.print(_HELP, markup=False, highlight=False)
            else:
                err.print(
                    f"there is no command {command}; /help lists them", style="yellow", markup=False
                )

    def _converse(self, line: str) -> None:
        try:
            answers = self._ask([*self.turns, {"role": "user", "content": line}], self.sides)
        except KeyboardInterrupt:  # stops this answer, not the conversation
            print()
            return
        self.turns += [
            {"role": "user", "content": line},
            {"role": "assistant", "content": answers[self.sides[-1]]},
        ]

    def _base_beside_last(self) -> None:
        if not self.turns:
            err.print("ask something first", style="yellow")
            return
        try:
            self._ask(self.turns[:-1], ["base"], {"tuned": self.turns[-1]["content"]})
        except KeyboardInterrupt:
            print()

    def _ask(
        self, turns: list[dict[str, str]], sides: list[str], known: dict[str, str] | None = None
    ) -> dict[str, str]:
        """The answers by side, shown as they are generated; ``known`` ones are shown beside them."""
        answers = {**dict.fromkeys(sides, ""), **(known or {})}
        if len(answers) == 1:
            answers[sides[0]] = self._stream(
                turns, sides[0], lambda text: print(text, end="", flush=True)
            )
            print()
        elif out.is_terminal:
            with Live(_columns(answers), console=out, refresh_per_second=8) as live:
                for side in sides:

                    def show(text: str, side: str = side) -> None:
                        answers[side] += text
                        live.update(_columns(answers))

                    answers[side] = self._stream(turns, side, show)
                    live.update(_columns(answers))
        else:
            for side in sides:
                answers[side] = self._stream(turns, side, lambda _text: None)
            for side, text in answers.items():
                print(f"{side}:\n{text.strip()}")
        return answers

    def _stream(
        self, turns: list[dict[str, str]], side: str, on_text: Callable[[str], None]
    ) -> str:
        from luthier.api import stream_answer

        opening = [{"role": "system", "content": self.system}] if self.system else []
        models = self.models
        with models.as_base() if side == "base" else nullcontext(models.tuned) as model:
            return stream_answer(
                model, models.tokenizer, (*opening, *turns), self.sampling, on_text
            )

    def _save(self, name: str) -> None:
        try:
            path = user_path(name)
        except UserError as error:
            err.print(str(error), style="yellow", markup=False)
            return
        if not name or not self.turns:
            what = "ask something first" if name else "/save needs a file name: /save FILE"
            err.print(what, style="yellow")
            return
        if path.exists() and path.resolve() not in self.saved:
            err.print(f"{path} already exists; choose another name", style="yellow", markup=False)
            return
        opening = [{"role": "system", "content": self.system}] if self.system else []
        try:
            write_jsonl(path, [{"messages": [*opening, *self.turns]}])
        except UserError as error:  # a conversation does not end for that
            err.print(str(error), style="yellow", markup=False)
            return
        self.saved.add(path.resolve())
        err.print(f"saved {len(self.turns)} turns to {path}", style="dim", markup=False)


def _columns(answers: dict[str, str]) -> Table:
    """The answers side by side, base on the left."""
    table = Table(expand=True)
    for side in sorted(answers):
        table.add_column(side, ratio=1, overflow="fold")
    table.add_row(*(Text(answers[side].strip()) for side in sorted(answers)))
    return table


def _turns() -> Iterator[str]:
    """What is typed or piped in, turn by turn; lines between triple quotes are one turn."""
    read = _typed() if sys.stdin.isatty() else input
    while True:
        try:
            line = read().strip()
            if line.startswith('"""'):
                line = line[3:]
                while not line.endswith('"""'):
                    line += "\n" + read()
                line = line[:-3].strip()
        except EOFError:
            return
        except KeyboardInterrupt:  # clears the line, as in a shell
            continue
        if line:
            yield line


def _typed() -> Callable[[], str]:
    """Lines from a terminal: arrow keys edit and recall, with the history of earlier chats."""
    import platformdirs
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.formatted_text import HTML
    from prompt_toolkit.history import FileHistory, History, InMemoryHistory
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()

    @keys.add("escape", "enter")
    def _new_line(event: "KeyPressEvent") -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("enter")
    def _send(event: "KeyPressEvent") -> None:
        event.current_buffer.validate_and_handle()

    history: History = InMemoryHistory()
    try:
        path = platformdirs.user_state_path("luthier", ensure_exists=True) / "chat-history"
        path.touch(mode=0o600)  # private to the user
        history = FileHistory(path)
    except OSError:
        pass
    commands = [line.split()[0] for line in _HELP.splitlines() if line.startswith("/")]
    session: PromptSession[str] = PromptSession(
        HTML("<ansicyan><b>&gt; </b></ansicyan>"),
        history=history,
        key_bindings=keys,
        multiline=True,
        prompt_continuation="  ",
        completer=WordCompleter([*commands, "/tuned"], sentence=True),
        complete_while_typing=False,
    )
    return session.prompt
