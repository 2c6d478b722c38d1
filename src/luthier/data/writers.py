"""Rows to files: the kind is given by the ending, complete or not at all."""

import csv
import gzip
import io
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any

import zstandard

from luthier.data.arrow_rows import to_table
from luthier.data.kinds import kind_of
from luthier.errors import UserError
from luthier.files import staged_file

Row = dict[str, Any]


def write_rows(path: Path, rows: Iterable[Row]) -> int:
    """Write ``rows`` to ``path`` (.jsonl .json .csv .tsv .parquet); how many it were.

    A text may end in .gz or .zst besides. JSONL and tables are written as the rows come; the others hold them all first.

    Raises:
        UserError: an unknown ending, a file that is there already, or rows the kind cannot hold.
    """
    kinds = kind_of(path.name)
    writer = _WRITERS.get(kinds[0]) if kinds is not None else None
    if kinds is None or writer is None:
        raise UserError(f"{path}: data is written to files that end in {', '.join(_WRITERS)}")
    if path.exists():
        raise UserError(f"{path} exists; choose another --out")
    count = 0

    def counted() -> Iterator[Row]:
        nonlocal count
        for row in rows:
            count += 1
            yield row

    try:
        with staged_file(path) as file, _compressed(file, kinds[1]) as stream:
            writer(stream, counted())
    except _Unfit as error:
        raise UserError(f"{path}: {error}; use .jsonl for these rows") from None
    return count


class _Unfit(Exception):
    """The kind of file cannot hold the rows."""


@contextmanager
def _compressed(file: IO[bytes], compression: str) -> Iterator[IO[bytes]]:
    if compression == ".gz":
        # Without a name and a time in it, the same rows make the same bytes.
        with gzip.GzipFile(filename="", fileobj=file, mode="wb", mtime=0) as stream:
            yield stream  # type: ignore[misc]
    elif compression == ".zst":
        with zstandard.ZstdCompressor().stream_writer(file, closefd=False) as zstd:
            yield zstd
    else:
        yield file


def _jsonl(stream: IO[bytes], rows: Iterable[Row]) -> None:
    for row in rows:
        stream.write(json.dumps(row, ensure_ascii=False).encode("utf-8") + b"\n")


def _json(stream: IO[bytes], rows: Iterable[Row]) -> None:
    text = json.dumps(list(rows), ensure_ascii=False, indent=1)
    stream.write(text.encode("utf-8") + b"\n")


def _csv(stream: IO[bytes], rows: Iterable[Row], separator: str = ",") -> None:
    names: list[str] = []
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=separator)

    def flush(values: Iterable[str]) -> None:
        writer.writerow(values)
        stream.write(text.getvalue().encode("utf-8"))
        text.seek(0)
        text.truncate()

    for row in rows:
        if not names:
            names = list(row)
            flush(names)
        if list(row) != names or not all(isinstance(value, str) for value in row.values()):
            raise _Unfit(f"a table needs the same text fields in every row ({', '.join(names)})")
        flush(row.values())


def _parquet(stream: IO[bytes], rows: Iterable[Row]) -> None:
    import pyarrow.parquet as pq

    pq.write_table(to_table(list(rows)), stream)


_WRITERS: dict[str, Callable[[IO[bytes], Iterable[Row]], None]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".tsv": partial(_csv, separator="\t"),
    ".parquet": _parquet,
}
