"""Continuous batching of a list of prompts: an answer that ends makes room for the next one.

What prompts have in common at their start (system prompt, examples, documents) is read once: a row
that enters takes over the keys and values of the row that shares most with it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from luthier.generate.cache import Cache, Piece
from luthier.generate.decoder import Decoder
from luthier.generate.lookup import Lookup
from luthier.generate.sampling import Sampling, choose

_CHUNK = 512  # tokens of prompts that are read at once
_WORTH = 16  # tokens that two rows must share for one to wait for the other
_MANY = 4  # answers that gain more by packed weights than packing takes
_AT_ONCE = 256  # tokens of a step beyond which nothing is guessed


@dataclass(frozen=True)
class Task:
    """A prompt to answer.

    Attributes:
        number: by which its answer is told.
        limit: most tokens of the answer.
        draw: which random numbers it draws.
    """

    number: int
    prompt: list[int]
    limit: int
    adapter: str | None
    draw: int = 0


@dataclass
class Pace:
    """What answers took.

    Attributes:
        tokens: that were made.
        steps: of the model; one makes the next token of many answers, and reads prompts.
        copied: of the tokens, those that were guessed from the text before them, and right.
    """

    tokens: int = 0
    steps: int = 0
    copied: int = 0

    def __str__(self) -> str:
        said = f"{self.tokens:,} tokens in {self.steps:,} steps of the model"
        if not self.copied:
            return said
        return f"{said}; {self.copied:,} of them were guessed from the text before, and right"


@dataclass(eq=False)
class _Row:
    """``cached`` of its ``tokens``, the prompt's and its own, are in ``slot`` of the cache."""

    task: Task
    slot: int
    tokens: list[int]
    cached: int
    random: torch.Generator
    lookup: Lookup | None = None
    ended: bool = False

    @property
    def unread(self) -> int:
        """Tokens that are not in the cache: of a prompt many, else the one that was made last."""
        return len(self.tokens) - self.cached

    @property
    def made(self) -> list[int]:
        return self.tokens[len(self.task.prompt) :]

    @property
    def left(self) -> int:
        """How many tokens it may still make."""
        return len(self.task.prompt) + self.task.limit - len(self.tokens)


class Batch:
    """Up to ``slots`` rows at once; fewer where memory does not hold them.

    Prompts are read in the steps that make tokens, so that the weights are read once for both.

    Args:
        pace: is added to.
    """

    def __init__(
        self,
        decoder: Decoder,
        tasks: Sequence[Task],
        sampling: Sampling,
        stops: Sequence[int],
        slots: int,
        on_token: Callable[[int], None] = lambda _token: None,
        pace: Pace | None = None,
    ) -> None:
        if len(tasks) >= _MANY:
            decoder.pack()
        self._decoder, self._sampling, self._stops = decoder, sampling, frozenset(stops)
        self._waiting = sorted(tasks, key=_order)
        self._on_token = on_token
        room = max(len(task.prompt) + task.limit for task in tasks)
        self._cache: Cache = decoder.cache(min(slots, len(tasks)), room)
        self._rows: list[_Row] = []  # row n has slot n
        # Of what each slot holds, the tokens of the prompt, and the adapter they were read under.
        self._held: list[tuple[list[int], str | None]] = [([], None)] * self._cache.slots
        self._pace = Pace() if pace is None else pace

    def run(self) -> Iterator[tuple[int, list[int]]]:
        """The number and the tokens of each answer, as it ends."""
        while self._waiting or self._rows:
            self._enter()
            self._step()
            ended = [row for row in self._rows if row.ended]
            self._rows = [row for row in self._rows if not row.ended]
            for row in ended:
                yield row.task.number, row.made

    def _enter(self) -> None:
        """Give free slots to waiting rows, as many as the next step can read prompts of."""
        taken = {row.slot for row in self._rows}
        free = [slot for slot in range(len(self._held)) if slot not in taken]
        reading = [row for row in self._rows if row.unread > 1]
        count = sum(row.unread for row in reading)
        waiting, self._waiting = iter(self._waiting), []
        for task in waiting:
            if not free or count >= _CHUNK:
                self._waiting += [task, *waiting]
                break
            slot, source, shared = self._most_shared(task, free)
            if any(_common(task, row.task) >= shared + _WORTH for row in reading):
                self._waiting.append(task)  # it gains by what is about to be read
                continue
            free.remove(slot)
            if source != slot and shared:
                self._cache.copy(source, slot, shared)
            row = _Row(task, slot, list(task.prompt), shared, self._sampling.generator(task.draw))
            if self._sampling.greedy and self._sampling.repetition_penalty == 1.0:
                row.lookup = Lookup(row.tokens)
            self._held[slot] = task.prompt[:shared], task.adapter
            self._rows.append(row)
            reading.append(row)
            count += row.unread
        self._close_up()

    def _close_up(self) -> None:
        """Let the rows fill the first slots, so that they are one piece of the cache."""
        self._rows.sort(key=lambda row: row.slot)
        taken = {row.slot for row in self._rows}
        for row, place in zip(
            reversed(self._rows),
            [slot for slot in range(len(self._rows)) if slot not in taken],
            strict=False,
        ):
            self._cache.copy(row.slot, place, row.cached)
            self._held[place] = self._held[row.slot]
            row.slot = place
        self._rows.sort(key=lambda row: row.slot)

    def _most_shared(self, task: Task, free: list[int]) -> tuple[int, int, int]:
        """A free slot for ``task``, the slot whose tokens it may take over, and how many."""
        shares = [
            _shared(held, task.prompt) if adapter == task.adapter else 0
            for held, adapter in self._held
        ]
        most = max(shares)
        slot = max(free, key=lambda each: shares[each])
        if shares[slot] == most:
            return slot, slot, most
        return free[0], shares.index(most), most

    def _step(self) -> None:
        """Read on in the prompts; of every other row the next token, and those that were guessed."""
        rows, pieces = self._pieces()
        wanted: list[int] = []
        asked: list[tuple[_Row, list[int]]] = []  # with the guesses
        end = 0
        for row, piece in zip(rows, pieces, strict=True):
            end += len(piece.tokens)
            over = piece.end - len(row.tokens)
            if over >= 0:
                wanted += range(end - 1 - over, end)
                asked.append((row, piece.tokens[len(piece.tokens) - over :]))
        logits = self._decoder.read(pieces, wanted)
        self._pace.steps += 1
        for row, piece in zip(rows, pieces, strict=True):
            if row.cached < len(row.task.prompt):
                row.cached = min(piece.end, len(row.tokens))
                self._held[row.slot] = row.task.prompt[: row.cached], row.task.adapter
        if asked:
            self._say(logits, asked)

    def _pieces(self) -> tuple[list[_Row], list[Piece]]:
        """What the next step reads, and of which rows."""
        rows: list[_Row] = []
        pieces: list[Piece] = []
        chunk = _CHUNK
        count = sum(row.unread == 1 for row in self._rows)
        count += min(chunk, sum(row.unread for row in self._rows if row.unread > 1))
        starts = self._common_starts()
        # Rows of one adapter side by side, so that its products read them where they lie.
        for row in sorted(self._rows, key=lambda row: row.task.adapter or ""):
            tokens = row.tokens[row.cached :]
            if len(tokens) > 1:
                tokens = tokens[:chunk]
                chunk -= len(tokens)
                if not tokens:
                    continue
            if row.lookup and row.cached + len(tokens) == len(row.tokens) and count < _AT_ONCE:
                guess = row.lookup.guess(count, row.left - 1)
                tokens += guess
                count += len(guess)
            rows.append(row)
            name = row.task.adapter
            pieces.append(Piece(self._cache, row.slot, row.cached, tokens, name, starts[name]))
        return rows, pieces

    def _common_starts(self) -> dict[str | None, int]:
        """By adapter, how many first tokens all its rows have in common."""
        prompts: dict[str | None, list[list[int]]] = {}
        for row in self._rows:
            prompts.setdefault(row.task.adapter, []).append(row.task.prompt)
        # What the first and the last in order have in common, those between have, too.
        return {name: _shared(min(some), max(some)) for name, some in prompts.items()}

    def _say(self, logits: torch.Tensor, asked: list[tuple[_Row, list[int]]]) -> None:
        """Give each row the tokens that its ``logits`` say: after its own, and after right guesses."""
        rows = [row for row, _ in asked]
        chosen = choose(
            logits, self._sampling, [row.tokens for row in rows], [row.random for row in rows]
        )
        start = 0
        for row, guess in asked:
            said = chosen[start : start + 1 + len(guess)]
            start += len(said)
            right = next((i for i, token in enumerate(guess) if token != said[i]), len(guess))
            self._pace.copied += min(right, self._take(row, said[: right + 1]))
            if row.lookup:
                row.lookup.learn(len(guess), right, said[0])

    def _take(self, row: _Row, said: list[int]) -> int:
        """Add what a row has said, up to its end, and return how many tokens; the last is not cached."""
        before = len(row.tokens)
        for token in said:
            row.tokens.append(token)
            self._on_token(token)
            if token in self._stops or not row.left:
                row.ended = True
                break
        row.cached = len(row.tokens) - 1
        self._pace.tokens += len(row.tokens) - before
        return len(row.tokens) - before


def _order(task: Task) -> tuple[int, list[int]]:
    """Long prompts first; of like length, those with a common start side by side."""
    return -len(task.prompt).bit_length(), task.prompt


def _common(one: Task, other: Task) -> int:
    return _shared(other.prompt, one.prompt) if one.adapter == other.adapter else 0


def _shared(held: list[int], prompt: list[int]) -> int:
    """How many first tokens are the same, but for the last of ``prompt``, whose logits are wanted."""
    same, most = 0, min(len(held), len(prompt) - 1)
    step = most
    while step:
        if held[same : same + step] == prompt[same : same + step]:
            same += step
            step = min(step, most - same)
        else:
            step //= 2
    return same
