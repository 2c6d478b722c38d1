"""Continuous batching of a list of prompts: an answer that ends makes room for the next one.

What prompts have in common at their start (system prompt, examples, documents) is read once: a row
that enters takes over the keys and values of the row that shares most with it.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from luthier.generate.cache import Cache, Piece
from luthier.generate.decoder import Decoder
from luthier.generate.lookup import Lookup
from luthier.generate.sampling import Sampling, choose

_CHUNK = 512  # tokens of prompts that are read at once
_WORTH = 16  # tokens that two rows must share for one to wait for the other


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


@dataclass(eq=False)
class _Row:
    task: Task
    slot: int
    tokens: list[int]
    cached: int
    random: torch.Generator
    lookup: Lookup | None = None
    made: list[int] = field(default_factory=list)


class Batch:
    """Up to ``slots`` rows at once."""

    def __init__(
        self,
        decoder: Decoder,
        tasks: Sequence[Task],
        sampling: Sampling,
        stops: Sequence[int],
        slots: int,
        on_token: Callable[[int], None] = lambda _token: None,
    ) -> None:
        self._decoder, self._sampling, self._stops = decoder, sampling, frozenset(stops)
        self._waiting = deque(sorted(tasks, key=_order))
        self._on_token = on_token
        slots = min(slots, len(tasks))
        room = max(len(task.prompt) + task.limit for task in tasks)
        self._cache: Cache = decoder.cache(slots, room)
        self._rows: list[_Row] = []  # row n has slot n
        # Of what each slot holds, the tokens of the prompt, and the adapter they were read under.
        self._held: list[tuple[list[int], str | None]] = [([], None)] * slots
        self._ended: list[_Row] = []

    def run(self) -> Iterator[tuple[int, list[int]]]:
        """The number and the tokens of each answer, as it ends."""
        while self._waiting or self._rows:
            self._enter()
            if not self._ended:
                self._step()
            for row in self._ended:
                self._rows.remove(row)
                yield row.task.number, row.made
            self._ended.clear()

    def _enter(self) -> None:
        """Read the prompts of waiting rows into the free slots."""
        taken = {row.slot for row in self._rows}
        free = [slot for slot in range(len(self._held)) if slot not in taken]
        while self._waiting and free:
            group: list[_Row] = []
            count = 0
            while self._waiting and free and count < _CHUNK:
                task = self._waiting[0]
                slot, source, shared = self._most_shared(task, free)
                if any(_common(task, row.task) >= shared + _WORTH for row in group):
                    break  # it gains by what the group is about to read
                self._waiting.popleft()
                free.remove(slot)
                if source != slot and shared:
                    self._cache.copy(source, slot, shared)
                row = _Row(
                    task, slot, list(task.prompt), shared, self._sampling.generator(task.draw)
                )
                if self._sampling.greedy and self._sampling.repetition_penalty == 1.0:
                    row.lookup = Lookup(row.tokens)
                self._held[slot] = task.prompt[:shared], task.adapter
                group.append(row)
                count += len(task.prompt) - shared
            self._read(group)
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

    def _read(self, group: list[_Row]) -> None:
        left = group
        while left:
            pieces, read, count = [], [], 0
            for row in left:
                part = row.task.prompt[row.cached : row.cached + max(1, _CHUNK - count)]
                pieces.append(Piece(self._cache, row.slot, row.cached, part, row.task.adapter))
                read.append(row)
                count += len(part)
                if count >= _CHUNK:
                    break
            logits = self._decoder.read(pieces)
            whole = []
            for index, (row, piece) in enumerate(zip(read, pieces, strict=True)):
                row.cached = piece.end
                if row.cached == len(row.task.prompt):
                    whole.append((index, row))
            if whole:
                rows = [row for _, row in whole]
                chosen = self._choose(logits[[index for index, _ in whole]], rows)
                for row, token in zip(rows, chosen, strict=True):
                    self._held[row.slot] = row.task.prompt, row.task.adapter
                    self._rows.append(row)
                    self._take(row, [token])
            left = [row for row in left if row.cached < len(row.task.prompt)]

    def _choose(self, logits: torch.Tensor, rows: list[_Row]) -> list[int]:
        return choose(
            logits, self._sampling, [row.tokens for row in rows], [row.random for row in rows]
        )

    def _step(self) -> None:
        """The next token of every row, and those after it that were guessed."""
        rows = self._rows
        guesses = [
            row.lookup.guess(len(rows), row.task.limit - len(row.made) - 1) if row.lookup else []
            for row in rows
        ]
        pieces = [
            Piece(self._cache, row.slot, row.cached, [row.tokens[-1], *guess], row.task.adapter)
            for row, guess in zip(rows, guesses, strict=True)
        ]
        count = sum(len(piece.tokens) for piece in pieces)
        logits = self._decoder.read(pieces, range(count))
        chosen = self._choose(logits, rows)
        start = 0
        for row, guess in zip(rows, guesses, strict=True):
            said = chosen[start : start + 1 + len(guess)]
            start += len(said)
            right = next((i for i, token in enumerate(guess) if token != said[i]), len(guess))
            if row.lookup:
                row.lookup.learn(len(guess), right)
            self._take(row, said[: right + 1])

    def _take(self, row: _Row, said: list[int]) -> None:
        """Add what a row has said; the last token is not yet in the cache."""
        for token in said:
            row.made.append(token)
            row.tokens.append(token)
            self._on_token(token)
            if token in self._stops or len(row.made) == row.task.limit:
                self._ended.append(row)
                break
        row.cached = len(row.tokens) - 1


def _order(task: Task) -> tuple[int, list[int]]:
    """Long prompts first; of like length, those with a common start side by side."""
    return -len(task.prompt).bit_length(), task.prompt


def _common(one: Task, other: Task) -> int:
    return _shared(other.prompt, one.prompt) if one.adapter == other.adapter else 0


def _shared(held: Sequence[int], prompt: list[int]) -> int:
    """How many first tokens are the same, but for the last of ``prompt``, whose logits are wanted."""
    most = min(len(held), len(prompt) - 1)
    for place in range(most):
        if held[place] != prompt[place]:
            return place
    return most
