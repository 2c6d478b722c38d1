"""Continuous batching: one worker thread makes the next token of every running answer at each step.

Answers join when their prompt was read and leave with their last token. Each prompt is read alone, a
piece between two steps, and every row attends by itself (`rows.py`), so that an answer does not
depend on its neighbours beyond the rounding of matrix products.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

from transformers import PreTrainedTokenizerBase

from luthier.data.thoughts import PLAIN, AnswerShape
from luthier.serve.choose import Choice, Chooser, Chosen
from luthier.serve.grammar import Grammar
from luthier.serve.limits import Limits
from luthier.serve.text import TextStream
from luthier.serve.weights import CHUNK, Memory, Reading, Weights

log = logging.getLogger(__name__)
T = TypeVar("T")


class Busy(Exception):
    """As many answers wait as may."""


class Closed(Exception):
    """The engine takes no more work."""


@dataclass(frozen=True)
class Ask:
    """One answer that is wanted.

    Attributes:
        adapter: of ``weights``; None for the model without one.
        stops: sequences of text that end the answer.
        stop_tokens: tokens that do.
        shape: how the chat template frames an answer.
    """

    weights: Weights
    adapter: str | None
    tokenizer: PreTrainedTokenizerBase
    prompt: list[int]
    choice: Choice
    stop_tokens: frozenset[int]
    stops: tuple[str, ...] = ()
    grammar: Grammar | None = None
    shape: AnswerShape = PLAIN


@dataclass(frozen=True)
class Token:
    """A token of the answer, and at which character of it the token begins."""

    chosen: Chosen
    at: int


@dataclass(frozen=True)
class Piece:
    """What a step brought: text that is certain now, the tokens chosen since the last piece.

    Attributes:
        finish: ``stop`` or ``length`` in the last piece; ``timeout`` or ``error`` where it failed.
        made: tokens of the answer so far, with the one that ended it.
        thought: what the model thought before the answer, whole.
        length: characters of an answer that a stop sequence cut: tokens from there on are not part
            of it.
    """

    text: str
    tokens: tuple[Token, ...] = ()
    finish: str | None = None
    made: int = 0
    length: int | None = None
    thought: str = ""


@dataclass(eq=False)
class Answer:
    """An answer on its way; the engine's own, a client only holds it to give it up."""

    ask: Ask
    deliver: Callable[[Piece], None]
    deadline: float
    given_up: threading.Event = field(default_factory=threading.Event)
    reading: Reading | None = None
    memory: Memory | None = None
    last: int = -1
    made: int = 0

    def __post_init__(self) -> None:
        self.text = TextStream(self.ask.tokenizer, self.ask.stops, self.ask.shape)
        self.chooser = Chooser(self.ask.choice, self.ask.prompt, self.ask.grammar)

    def cancel(self) -> None:
        """Cancel it; its place is free after the current step."""
        self.given_up.set()


class Engine:
    """Makes the answers of all clients, on a thread of its own.

    ``deliver`` of each answer is called on that thread.
    """

    def __init__(self, limits: Limits, on_step: Callable[[int], None] = lambda _rows: None) -> None:
        self._limits = limits
        self._on_step = on_step
        self._changed = threading.Condition()
        self._waiting: deque[Answer] = deque()
        self._calls: deque[Callable[[], None]] = deque()
        self._reading: deque[Answer] = deque()
        self._running: list[Answer] = []
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="luthier-engine", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        return len(self._running) + len(self._reading)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and not self._closed

    def uses(self, weights: Weights, adapter: str | None) -> bool:
        """Whether an answer on its way, or one that waits, needs ``adapter``."""
        with self._changed:
            return any(
                answer.ask.weights is weights and answer.ask.adapter == adapter
                for answer in [*self._waiting, *self._reading, *self._running]
            )

    def submit(self, asks: list[Ask], deliver: Callable[[int, Piece], None]) -> list[Answer]:
        """Queue answers, all or none; ``deliver`` gets each piece with the number of its ask.

        Raises:
            Busy: the queue is full.
            Closed: the engine was stopped.
        """
        deadline = time.monotonic() + self._limits.seconds
        answers = [
            Answer(ask, lambda piece, number=number: deliver(number, piece), deadline)  # type: ignore[misc]
            for number, ask in enumerate(asks)
        ]
        with self._changed:
            if self._closed:
                raise Closed
            free = self._limits.batch - self.running
            if len(self._waiting) + len(asks) > self._limits.queue + max(0, free):
                raise Busy
            self._waiting.extend(answers)
            self._changed.notify()
        return answers

    def call(self, function: Callable[[], T]) -> "Future[T]":
        """Run ``function`` between two steps, where nothing else touches the models."""
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)

        with self._changed:
            if self._closed:
                raise Closed
            self._calls.append(run)
            self._changed.notify()
        return future

    def close(self) -> None:
        """End: what still runs is failed. Waits for the step that runs, as long as for answers."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(self._limits.shutdown_seconds)

    def _work(self) -> None:
        while True:
            with self._changed:
                while not (self._waiting or self._calls or self.running or self._closed):
                    self._changed.wait()
                if self._closed:
                    break
                calls = list(self._calls)
                self._calls.clear()
                while self._waiting and self.running < self._limits.batch:
                    self._reading.append(self._waiting.popleft())
            for call in calls:
                call()
            self._drop()
            self._read_on()
            self._step()
        for call in self._calls:  # somebody waits for each of them
            call()
        for answer in [*self._waiting, *self._reading, *self._running]:
            self._end(answer, "error")

    def _drop(self) -> None:
        """Drop answers that were cancelled or took too long."""
        now = time.monotonic()
        with self._changed:
            gone = [
                answer
                for answer in [*self._waiting, *self._reading, *self._running]
                if answer.given_up.is_set() or now > answer.deadline
            ]
            for answer in gone:
                self._forget(answer)
        for answer in gone:
            if not answer.given_up.is_set():
                answer.deliver(Piece("", finish="timeout", made=answer.made))

    def _forget(self, answer: Answer) -> None:
        for place in (self._waiting, self._reading, self._running):
            if answer in place:
                place.remove(answer)
        answer.reading = answer.memory = None

    def _end(self, answer: Answer, finish: str) -> None:
        """An answer that failed for our own reasons."""
        self._forget(answer)
        answer.deliver(Piece("", finish=finish, made=answer.made))

    def _read_on(self) -> None:
        """Read prompts, the oldest first, `CHUNK` tokens of them or little more."""
        read = 0
        while self._reading and read < CHUNK:
            answer = self._reading[0]
            read += min(CHUNK, len(answer.ask.prompt))
            self._read_piece(answer)

    def _read_piece(self, answer: Answer) -> None:
        ask = answer.ask
        try:
            if answer.reading is None:
                room = ask.choice.sampling.max_new_tokens
                answer.reading = ask.weights.begin(ask.prompt, ask.adapter, room)
            logits = ask.weights.read(answer.reading)
            if logits is None:
                return
            self._reading.popleft()
            room = ask.choice.sampling.max_new_tokens
            answer.memory = ask.weights.remember(answer.reading, room)
            answer.reading = None
            self._running.append(answer)
            self._take(answer, logits)
        except Exception:
            log.exception("reading a prompt failed")
            self._end(answer, "error")

    def _step(self) -> None:
        """One token more for every running answer."""
        for weights in dict.fromkeys(answer.ask.weights for answer in self._running):
            rows = [answer for answer in self._running if answer.ask.weights is weights]
            try:
                memories: list[Any] = [answer.memory for answer in rows]
                logits = weights.step(
                    memories, [a.last for a in rows], [a.ask.adapter for a in rows]
                )
            except Exception:
                log.exception("a decoding step failed")
                for answer in rows:
                    self._end(answer, "error")
                continue
            self._on_step(len(rows))
            for answer, row in zip(rows, logits, strict=True):
                try:
                    self._take(answer, row)
                except Exception:
                    log.exception("sampling a token failed")
                    self._end(answer, "error")

    def _take(self, answer: Answer, logits: Any) -> None:
        """Choose a token of ``answer`` and tell of it; at the last one, let the answer go."""
        ask = answer.ask
        chosen = answer.chooser.choose(logits)
        answer.last = chosen.token
        answer.made += 1
        if chosen.token in ask.stop_tokens:
            self._finish(answer, "", (), "stop")
            return
        token = (Token(chosen, answer.text.length),)
        text = answer.text.add(chosen.token)
        if answer.text.stopped or (ask.grammar is not None and ask.grammar.complete):
            self._finish(answer, text, token, "stop")
        elif answer.made >= ask.choice.sampling.max_new_tokens:
            self._finish(answer, text, token, "length")
        else:
            thought = answer.text.take_thought()
            answer.deliver(Piece(text, token, made=answer.made, thought=thought))

    def _finish(self, answer: Answer, text: str, tokens: tuple[Token, ...], finish: str) -> None:
        text += answer.text.finish()
        if answer.text.stopped:  # also by what was held back until the end
            finish = "stop"
        self._forget(answer)
        length = answer.text.length if answer.text.stopped else None
        kept = tuple(token for token in tokens if length is None or token.at < length)
        thought = answer.text.take_thought()
        answer.deliver(Piece(text, kept, finish, answer.made, length, thought))
