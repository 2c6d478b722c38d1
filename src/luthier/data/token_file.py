"""Token rows in a file: written as they are made, and read one by one where they are asked for.

The file holds, as little-endian int32, the tokens of all token rows end to end, a token that does not
count in the loss as its complement; then how many token rows each row became, and the length of each
token row; and last its sizes. Reading a row of 300 tokens takes 5 µs, as from an Arrow file; memory
maps give it in 2 µs, but their pages count as resident memory of the process once they were read.
"""

import os
import struct
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from luthier.data.conversation import Conversation
from luthier.data.stored import read_at
from luthier.data.tokens import Ids, Mask, TokenRow

_MAGIC = b"luthier1"
_END = struct.Struct("<8sqqq")  # rows, token rows, tokens
_LEN = 4  # bytes of a number
_SMALL = 2**22  # bytes; a file of fewer is held in memory


@dataclass(frozen=True, slots=True)
class Packed:
    """Token rows of some rows as the file holds them.

    Attributes:
        pieces: how many token rows each row became.
        lengths: of each token row.
    """

    tokens: bytes
    pieces: list[int]
    lengths: list[int]

    @classmethod
    def of(cls, rows: Iterable[Sequence[TokenRow]]) -> "Packed":
        """From all token rows of each row."""
        tokens: list[bytes] = []
        counts: list[int] = []
        lengths: list[int] = []
        for pieces in rows:
            for piece in pieces:
                ids, mask = piece.arrays
                tokens.append((ids ^ (mask.view(np.int8) - 1)).astype("<i4", copy=False).tobytes())
                lengths.append(len(ids))
            counts.append(len(pieces))
        return cls(b"".join(tokens), counts, lengths)


class TokenWriter:
    """Writes token rows to ``file``, which is empty; ``finish`` writes what makes it readable."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._pieces = array("i")
        self._lengths = array("i")

    def add(self, packed: Packed) -> None:
        """All token rows of the next rows."""
        self._file.write(packed.tokens)
        self._lengths.extend(packed.lengths)
        self._pieces.extend(packed.pieces)

    def finish(self) -> None:
        self._file.write(np.array(self._pieces, "<i4").tobytes())
        self._file.write(np.array(self._lengths, "<i4").tobytes())
        sizes = len(self._pieces), len(self._lengths), sum(self._lengths)
        self._file.write(_END.pack(_MAGIC, *sizes))
        self._file.flush()


class TokenFile:
    """A file that ``TokenWriter`` wrote; it stays open.

    Attributes:
        pieces: (rows,) int32, how many token rows each row became.
        lengths: (token rows,) int32.

    Raises:
        ValueError: it is none, or damaged.
        OSError: it cannot be read.
    """

    def __init__(self, file: Path | IO[bytes]) -> None:
        self._file: IO[bytes] = file.open("rb") if isinstance(file, Path) else file
        self._whole: bytes | None = None
        size = self._file.seek(0, os.SEEK_END)
        if size < _END.size:
            raise ValueError("too short")
        self._whole = self._read(0, size) if size <= _SMALL else None
        magic, rows, token_rows, tokens = _END.unpack(self._read(size - _END.size, _END.size))
        if magic != _MAGIC or size != _LEN * (rows + token_rows + tokens) + _END.size:
            raise ValueError("not a whole file of tokens")
        self.pieces = self._numbers(tokens, rows)
        self.lengths = self._numbers(tokens + rows, token_rows)
        if self.pieces.sum() != token_rows or self.lengths.sum(dtype=np.int64) != tokens:
            raise ValueError("its sizes do not match")

    def arrays(self, start: int, length: int) -> tuple[Ids, Mask]:
        """Ids and mask of the tokens from ``start``; the first counts for nothing."""
        numbers = self._numbers(start, length)
        mask = numbers >= 0
        mask[:1] = False
        ids: Ids = numbers ^ (numbers >> np.int32(31))  # the complement of those below 0
        return ids, mask

    def token_rows(self, rows: Sequence[Conversation]) -> list[list[TokenRow]]:
        """The token rows of each of ``rows``, from which the file was made."""
        made: list[list[TokenRow]] = []
        lengths = iter(self.lengths.tolist())
        start = 0
        for index, count in enumerate(self.pieces.tolist()):
            pieces: list[TokenRow] = []
            for _ in range(count):
                length = next(lengths)
                pieces.append(StoredTokenRow(self, start, length, rows, index))
                start += length
            made.append(pieces)
        return made

    def _numbers(self, start: int, count: int) -> NDArray[np.int32]:
        raw = self._read(_LEN * start, _LEN * count)
        return np.frombuffer(raw, "<i4").astype(np.int32, copy=False)

    def _read(self, start: int, size: int) -> bytes:
        if self._whole is not None:
            return self._whole[start : start + size]
        found = b""
        while len(found) < size:  # one read gives 2 GiB at most
            more = read_at(self._file, start + len(found), size - len(found))
            if not more:
                raise ValueError("the file ends too early")
            found = found + more if found else more
        return found


class StoredTokenRow(TokenRow):
    """A token row whose tokens are in a file and whose conversation is loaded when it is asked for."""

    __slots__ = ("_file", "_length", "_start")

    def __init__(
        self,
        file: TokenFile,
        start: int,
        length: int,
        rows: Sequence[Conversation],
        index: int,
    ) -> None:
        self._file, self._start, self._length = file, start, length
        self._rows, self._index = rows, index

    @property
    def arrays(self) -> tuple[Ids, Mask]:
        return self._file.arrays(self._start, self._length)

    def part(self, start: int, end: int) -> TokenRow:
        length = min(end, self._length) - start
        return StoredTokenRow(self._file, self._start + start, length, self._rows, self._index)

    def follows(self, other: TokenRow) -> bool:
        """Whether its tokens stand right behind those of ``other`` in the same file."""
        return (
            isinstance(other, StoredTokenRow)
            and other._file is self._file
            and other._start + other._length == self._start
        )

    def read_with(self, others: Sequence[TokenRow]) -> tuple[Ids, Mask]:
        """Its arrays and those of ``others``, which follow it in the file."""
        lengths = [self._length, *map(len, others)]
        ids, mask = self._file.arrays(self._start, sum(lengths))
        mask[np.cumsum(lengths[:-1])] = False
        return ids, mask

    def __len__(self) -> int:
        return self._length


def arrays_of(rows: Sequence[TokenRow]) -> tuple[Ids, Mask]:
    """Ids and mask of all ``rows``, end to end; those that stand together in a file are read together."""
    parts: list[tuple[Ids, Mask]] = []
    at = 0
    while at < len(rows):
        first = rows[at]
        end = at + 1
        while end < len(rows) and _stored_behind(rows[end], rows[end - 1]):
            end += 1
        if isinstance(first, StoredTokenRow) and end > at + 1:
            parts.append(first.read_with(rows[at + 1 : end]))
        else:
            parts.append(first.arrays)
        at = end
    return np.concatenate([ids for ids, _ in parts]), np.concatenate([mask for _, mask in parts])


def _stored_behind(row: TokenRow, other: TokenRow) -> bool:
    return isinstance(row, StoredTokenRow) and row.follows(other)
