"""Conversations on disk: written as they are read, and loaded one by one where they are asked for.

A million rows take some 4 GiB as Python objects and 60 MiB as places in a file. A line is parsed in
about 10 µs, and training itself needs none.
"""

import hashlib
import itertools
import json
import os
import tempfile
import threading
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, overload

import numpy as np
from numpy.typing import NDArray

from luthier.data.conversation import Conversation, Origin
from luthier.data.unused import Fields, fields_of
from luthier.errors import UserError
from luthier.models.pull import cache_folder

_KEY, _HASH = 32, 16  # bytes of each row
_numbers = itertools.count()


def line_of(row: Conversation) -> bytes:
    """``row`` as a line of JSON, the end of the line included."""
    return json.dumps(row.to_row(), ensure_ascii=False).encode("utf-8") + b"\n"


def content_hash(row: Conversation) -> bytes:
    """16 bytes that tell what a model sees of ``row``, not where it came from."""
    told = json.dumps([row.text, row.messages], ensure_ascii=True)
    return hashlib.blake2b(told.encode(), digest_size=_HASH).digest()


class RowFile:
    """Conversations as lines of JSON in a file, in the order in which they were added.

    Args:
        key: of a row, hexadecimal digits of 32 bytes; it is kept of each.
        file: an empty one; None is a temporary one.

    Attributes:
        number: that no other file of this process has.
    """

    def __init__(self, key: Callable[[Conversation], str], file: IO[bytes] | None = None) -> None:
        self.number = next(_numbers)
        self._key = key
        self._file = temporary_file() if file is None else file
        self._written = False  # something that is not yet where it is read
        self._ends = array("q", [0])
        self._files: list[str] = []
        self._origins = array("q")  # of each row the number of its file, and its line
        self._spoken = bytearray()
        self._keys = bytearray()
        self._hashes = bytearray()
        self._unused: list[Fields] = [frozenset()]  # those of some row
        self._number_of = {self._unused[0]: 0}
        self._unused_of = array("i")

    def __len__(self) -> int:
        return len(self._spoken)

    def append(self, row: Conversation) -> None:
        line = line_of(row)
        self._write(line)
        self.add_known(row, len(line))

    def add_known(self, row: Conversation, length: int) -> None:
        """Add ``row``, whose line of ``length`` bytes is in the file already."""
        key = bytes.fromhex(self._key(row))
        self._add(length, row.origin, bool(row.messages), key, content_hash(row))
        fields = fields_of(row)
        number = self._unused_of[-1] = self._number_of.setdefault(fields, len(self._unused))
        if number == len(self._unused):
            self._unused.append(fields)

    def append_from(self, other: "RowFile", place: int) -> None:
        """Add the row at ``place`` of ``other``, which is not parsed for that."""
        key = bytes.fromhex(other.key(place))
        line, origin = other.line(place), other.origin(place)
        self._write(line)
        self._add(len(line), origin, other.spoken(place), key, other.content_hash(place))

    def _write(self, line: bytes) -> None:
        try:
            if not hasattr(os, "pread"):
                self._file.seek(self._ends[-1])  # reading moved it
            self._file.write(line)
            self._written = True
        except OSError as error:
            raise cannot_write(error) from error

    def _add(self, length: int, origin: Origin, spoken: bool, key: bytes, content: bytes) -> None:
        self._ends.append(self._ends[-1] + length)
        if self._files[-1:] != [origin.file]:
            self._files.append(origin.file)
        self._origins.extend((len(self._files) - 1, origin.line))
        self._spoken.append(spoken)
        self._keys += key
        self._hashes += content
        self._unused_of.append(0)

    def line(self, place: int) -> bytes:
        """The row as a line of JSON, its end included."""
        start, end = self._ends[place], self._ends[place + 1]
        self.flush()
        return read_at(self._file, start, end - start)

    def flush(self) -> None:
        """Write what is buffered; a process that is forked before that would write it again."""
        if self._written:
            self._file.flush()
            self._written = False

    def origin(self, place: int) -> Origin:
        number, line = self._origins[2 * place : 2 * place + 2]
        return Origin(self._files[number], line)

    def spoken(self, place: int) -> bool:
        """Whether it is made of messages, not of plain text."""
        return bool(self._spoken[place])

    def key(self, place: int) -> str:
        return self._keys[_KEY * place : _KEY * (place + 1)].hex()

    def content_hash(self, place: int) -> bytes:
        return bytes(self._hashes[_HASH * place : _HASH * (place + 1)])

    def unused(self, place: int) -> Fields:
        """Its ``fields_of``."""
        return self._unused[self._unused_of[place]]

    def save_index(self, path: Path) -> None:
        """Write to ``path`` (.npz) what ``open`` needs beside the file of lines.

        Unused fields are not in it: they are told once, when rows are read.
        """
        self._file.flush()
        np.savez(
            path,
            ends=np.frombuffer(self._ends, np.int64),
            files=np.frombuffer(json.dumps(self._files).encode(), np.uint8),
            origins=np.frombuffer(self._origins, np.int64),
            spoken=np.frombuffer(self._spoken, np.uint8),
            keys=np.frombuffer(self._keys, np.uint8),
            hashes=np.frombuffer(self._hashes, np.uint8),
        )

    @classmethod
    def open(cls, lines: Path, index: Path, key: Callable[[Conversation], str]) -> "RowFile":
        """What was saved.

        Raises:
            OSError, ValueError, KeyError, BadZipFile: it is absent or damaged.
        """
        made = cls(key, lines.open("rb"))
        with np.load(index, allow_pickle=False) as found:
            made._ends = array("q", found["ends"].tobytes())
            made._origins = array("q", found["origins"].tobytes())
            made._files = json.loads(found["files"].tobytes())
            made._spoken, made._keys, made._hashes = (
                bytearray(found[name].tobytes()) for name in ("spoken", "keys", "hashes")
            )
        rows = len(made._spoken)
        made._unused_of = array("i", bytes(4 * rows))
        sizes = len(made._ends) - 1, len(made._origins) / 2, len(made._keys) / _KEY
        if {*sizes, len(made._hashes) / _HASH} != {rows}:
            raise ValueError("an index whose parts do not match")
        if lines.stat().st_size != made._ends[-1]:
            raise ValueError("lines that are not whole")
        return made


class StoredRows(Sequence[Conversation]):
    """Some rows of a ``RowFile``, in an order of their own; each is loaded when it is asked for.

    Attributes:
        places: (n,) int64, where each is in ``file``.
    """

    def __init__(self, file: RowFile, places: Iterable[int]) -> None:
        self.file = file
        file.flush()
        self.places: NDArray[np.int64] = (
            places if isinstance(places, np.ndarray) else np.fromiter(places, np.int64)
        )

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, index: int) -> Conversation: ...
    @overload
    def __getitem__(self, index: slice) -> "StoredRows": ...
    def __getitem__(self, index: int | slice) -> "Conversation | StoredRows":
        if isinstance(index, slice):
            return StoredRows(self.file, self.places[index])
        return Conversation.from_row(json.loads(self.file.line(int(self.places[index]))))

    def chosen(self, indices: Sequence[int]) -> "StoredRows":
        """Those at ``indices``."""
        return StoredRows(self.file, self.places[np.asarray(indices, np.int64)])

    def keys(self) -> Iterator[str]:
        return (self.file.key(place) for place in self.places.tolist())

    def lines(self) -> Iterator[bytes]:
        return (self.file.line(place) for place in self.places.tolist())

    def content_hashes(self) -> Iterator[bytes]:
        return (self.file.content_hash(place) for place in self.places.tolist())


def joined(rows: Sequence[Conversation], more: Sequence[Conversation]) -> Sequence[Conversation]:
    """All of ``rows``, then all of ``more``; of rows in one file none is loaded."""
    if isinstance(rows, StoredRows) and isinstance(more, StoredRows) and rows.file is more.file:
        return StoredRows(rows.file, np.concatenate([rows.places, more.places]))
    return [*rows, *more]


_no_pread = threading.Lock()


def read_at(file: IO[bytes], start: int, size: int) -> bytes:
    """At most ``size`` bytes of ``file`` from ``start``, for threads and forked processes at the same time."""
    if hasattr(os, "pread"):
        return os.pread(file.fileno(), size, start)
    with _no_pread:
        file.seek(start)
        return file.read(size)


def cannot_write(error: OSError) -> UserError:
    """What to say where a temporary file cannot take more."""
    return UserError(
        f"cannot write rows to a temporary file in {cache_folder().parent}: "
        f"{error.strerror or error}; make room there, or set LUTHIER_CACHE to a folder with more"
    )


def temporary_file() -> IO[bytes]:
    """An empty file that goes away with the process, beside the caches if they can be written."""
    # Where the system keeps such files may be memory.
    folder = cache_folder().parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryFile(dir=folder)
    except OSError:
        return tempfile.TemporaryFile()
