"""Kinds of data files, by their endings, and reading their bytes through compression."""

import gzip
import io
import zlib
from pathlib import Path
from typing import Any

import zstandard

from luthier.errors import UserError

TEXT = (".jsonl", ".json", ".csv", ".tsv")
READABLE = (*TEXT, ".parquet", ".arrow", ".xlsx", ".ods")
COMPRESSED = (".gz", ".zst")  # after the ending of a text; the other kinds compress themselves

# What opening a damaged archive, or reading on in it, raises.
ARCHIVE_ERRORS = (gzip.BadGzipFile, zlib.error, EOFError, zstandard.ZstdError)

_CHUNK = 1 << 16
_COMPRESSED_CHUNK = 1 << 12  # of zstd, which may unpack four bytes to 128 KiB

# A file that unpacks to more than this, and to so many times its size, is an archive bomb, not text.
_LARGE, _RATIO = 100 * 2**20, 200


def kind_of(name: str) -> tuple[str, str] | None:
    """The kind and compression of a file name (``(".jsonl", ".gz")``), or None if not readable."""
    suffixes = [suffix.lower() for suffix in Path(name).suffixes[-2:]]
    compression = suffixes.pop() if suffixes and suffixes[-1] in COMPRESSED else ""
    kind = suffixes[-1] if suffixes else ""
    if kind not in (TEXT if compression else READABLE):
        return None
    return kind, compression


def endings() -> str:
    """The readable endings, for messages and help."""
    others = READABLE[len(TEXT) :]
    return f"{', '.join(TEXT)} (these also with .gz or .zst), {', '.join(others)}"


def open_bytes(path: Path) -> io.BufferedReader:
    """The decompressed bytes of ``path`` as a stream.

    Raises:
        OSError, or one of ``ARCHIVE_ERRORS`` here or while reading: the file is damaged.
    """
    compression = path.suffix.lower()
    if compression == ".gz":
        return io.BufferedReader(_Bounded(gzip.open(path, "rb"), path), _CHUNK)
    if compression == ".zst":
        return io.BufferedReader(_Bounded(_ZstdReader(path), path), _CHUNK)
    return path.open("rb")


def check_unpacked(path: Path, size: int) -> None:
    """Refuse an archive that unpacks to ``size`` bytes, or to more, where that is no text.

    Raises:
        UserError: it is an archive bomb.
    """
    if size > _LARGE and size > _RATIO * path.stat().st_size:
        raise UserError(
            f"{path} unpacks to over {_RATIO} times its size, more than text ever does; if you trust "
            "it, unpack it yourself"
        )


class _Bounded(io.RawIOBase):
    """Passes on what ``inner`` unpacks, until it is too much for the file it comes from."""

    def __init__(self, inner: Any, path: Path) -> None:
        self._inner = inner
        self._path = path
        self._unpacked = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "memoryview") -> int:  # type: ignore[override]
        count: int = self._inner.readinto(buffer)
        self._unpacked += count
        check_unpacked(self._path, self._unpacked)
        return count

    def close(self) -> None:
        self._inner.close()
        super().close()


class _ZstdReader(io.RawIOBase):
    """Reads one or more zstd frames; unlike the library's own reader it notices a cut-off file."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._frame = zstandard.ZstdDecompressor().decompressobj()
        self._compressed = b""
        self._fresh = True  # nothing of the current frame was read yet
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "memoryview") -> int:  # type: ignore[override]
        while not self._ready:
            data = self._compressed or self._file.read(_COMPRESSED_CHUNK)
            self._compressed = b""
            if not data:
                if not self._fresh:
                    raise EOFError("the archive ends before its end mark")
                return 0
            self._fresh = False
            self._ready = memoryview(self._frame.decompress(data))
            if self._frame.eof:
                self._compressed = self._frame.unused_data
                self._frame = zstandard.ZstdDecompressor().decompressobj()
                self._fresh = True
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def close(self) -> None:
        self._file.close()
        super().close()
