"""Hold rows out for validation so that nothing crosses the split."""

import hashlib
import heapq
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from luthier.data.conversation import Conversation
from luthier.data.stored import StoredRows

_Row = TypeVar("_Row")


def split_key(row: Conversation, fold_case: bool = True) -> str:
    """What two rows share that must not be on both sides: the prompt, spacing and case aside.

    Rows that are the same throughout share it too. Plain text has no prompt: all of it is the key.
    Without ``fold_case`` upper and lower case differ.
    """
    parts = [row.text] if row.text is not None else []
    for message in row.prompt:
        parts += [message["role"], message["content"], message.get("input", "")]
        parts += [json.dumps(message[key]) for key in ("tool_calls", "tools") if key in message]
    text = "\0".join(" ".join(part.split()) for part in parts)
    if fold_case:
        text = text.casefold()
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def choose_held_out(keys: Iterable[str], fraction: float, seed: int) -> set[str]:
    """Which of the rows' ``split_key``s to hold out, so that ``fraction`` of the rows are.

    All rows of a key go to one side. Which one depends on the key and the seed alone, so that adding
    rows moves few of the others. Where a fraction is asked for and there are two keys at least,
    neither side is empty.
    """
    groups = Counter(keys)
    ranked = sorted(groups, key=lambda key: hashlib.sha256(f"{seed}:{key}".encode()).digest())
    wanted, count = round(groups.total() * fraction), 0
    held_out: set[str] = set()
    for key in ranked:
        # A group too large for what is still wanted stays in training, and one group at least.
        if count + groups[key] <= wanted and len(held_out) + 1 < max(2, len(groups)):
            held_out.add(key)
            count += groups[key]
    if fraction > 0 and not held_out and len(groups) > 1:
        held_out.add(min(ranked, key=lambda key: groups[key]))
    return held_out


def split(
    rows: Sequence[Conversation], fraction: float, seed: int
) -> tuple[Sequence[Conversation], Sequence[Conversation]]:
    """Split into (train, validation) by ``choose_held_out``, order kept."""
    return _parted(rows, choose_held_out(_keys(rows), fraction, seed))


def without_overlap(
    train: Sequence[Conversation], validation: Sequence[Conversation]
) -> tuple[Sequence[Conversation], Sequence[Conversation]]:
    """Split ``train`` into the rows that are not in ``validation`` by key, and those that are."""
    return _parted(train, set(_keys(validation)))


def _keys(rows: Sequence[Conversation]) -> Iterator[str]:
    return rows.keys() if isinstance(rows, StoredRows) else map(split_key, rows)


def _parted(
    rows: Sequence[Conversation], keys: set[str]
) -> tuple[Sequence[Conversation], Sequence[Conversation]]:
    """The rows of which no key is in ``keys``, and the others."""
    inside = [key in keys for key in _keys(rows)]
    without = [index for index, within in enumerate(inside) if not within]
    return chosen(rows, without), chosen(rows, [i for i, within in enumerate(inside) if within])


def chosen(rows: Sequence[Conversation], indices: Sequence[int]) -> Sequence[Conversation]:
    """The rows at ``indices``; of rows on disk none is loaded."""
    if isinstance(rows, StoredRows):
        return rows.chosen(indices)
    return [rows[index] for index in indices]


def sample(rows: Sequence[_Row], count: int, seed: int) -> list[_Row]:
    """A seeded sample of at most ``count`` rows, in their order."""
    return [rows[index] for index in sampled(len(rows), count, seed)]


def sampled(size: int, count: int, seed: int) -> Sequence[int]:
    """Which of ``size`` rows ``sample`` takes."""
    if count >= size:
        return range(size)
    return sorted(sorted(range(size), key=lambda i: _rank(seed, i))[:count])


def _rank(seed: int, index: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{index}".encode()).digest())


class RunningSample:
    """What ``sampled`` takes, told while rows come whose number nobody knows yet.

    Of n rows it is k (1 + ln(n / k)) times told to take one, for a sample of k.
    """

    def __init__(self, count: int, seed: int) -> None:
        self._count, self._seed = count, seed
        self._worst_first: list[tuple[int, int]] = []
        self.seen = 0

    def takes(self) -> bool:
        """Whether the next row is in the sample of the rows so far."""
        entry = (-_rank(self._seed, self.seen), self.seen)
        self.seen += 1
        if len(self._worst_first) < self._count:
            heapq.heappush(self._worst_first, entry)
            return True
        return heapq.heappushpop(self._worst_first, entry) != entry

    @property
    def indices(self) -> list[int]:
        """The sample of all rows that came, in order."""
        return sorted(index for _, index in self._worst_first)
