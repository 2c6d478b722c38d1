"""Kinds of data files, told by their endings, and reading their bytes through compression."""

import gzip
import io
import zlib
from pathlib import Path
from typing import IO

import zstandard

READABLE = (".jsonl", ".json", ".csv", ".parquet")
COMPRESSED = (".gz", ".zst")  # after the ending of any kind but Parquet, which compresses itself

# What opening a damaged archive, or reading on in it, raises.
ARCHIVE_ERRORS = (gzip.BadGzipFile, zlib.error, EOFError, zstandard.ZstdError)

_CHUNK = 1 << 16


def kind_of(name: str) -> tuple[str, str] | None:
    """The kind and compression of a file name (``(".jsonl", ".gz")``), or None if not readable."""
    suffixes = [suffix.lower() for suffix in Path(name).suffixes[-2:]]
    compression = suffixes.pop() if suffixes and suffixes[-1] in COMPRESSED else ""
    kind = suffixes[-1] if suffixes else ""
    if kind not in READABLE or (kind == ".parquet" and compression):
        return None
    return kind, compression


def endings() -> str:
    """The readable endings, for messages and help."""
    return f"{', '.join(READABLE)} (all but the last also with .gz or .zst)"


def open_bytes(path: Path) -> IO[bytes]:
    """The decompressed bytes of ``path`` as a stream.

    Raises:
        OSError, or one of ``ARCHIVE_ERRORS`` here or while reading: the file is damaged.
    """
    compression = path.suffix.lower()
    if compression == ".gz":
        return io.BufferedReader(gzip.open(path, "rb"), _CHUNK)
    if compression == ".zst":
        return io.BufferedReader(_ZstdReader(path), _CHUNK)
    return path.open("rb")


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
            data = self._compressed or self._file.read(_CHUNK)
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
