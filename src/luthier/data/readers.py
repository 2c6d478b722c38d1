"""Files to rows: JSONL, JSON, CSV and Parquet, each row with its place."""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, AnyStr

from luthier.data.conversation import Origin
from luthier.data.kinds import ARCHIVE_ERRORS, endings, kind_of, open_bytes
from luthier.data.sources import find_files
from luthier.errors import UserError
from luthier.events import OnEvent, ignore, tracked
from luthier.files import user_path

_LONGEST = 64 * 2**20  # of a row; a longer one is no training data


class BadRow(Exception):
    """A row that cannot be used; ``origin`` says where, the message why."""

    def __init__(self, origin: Origin, reason: str) -> None:
        super().__init__(f"{origin}: {reason}")
        self.origin = origin
        self.reason = reason


Item = tuple[Origin, dict[str, Any]] | BadRow


def read_rows(source: str, on_event: OnEvent = ignore) -> Iterator[Item]:
    """Stream the rows of a source, which ``find_files`` explains, file by file.

    A row that is not valid comes as a ``BadRow`` value, so that one broken line hides no other.
    ``on_event`` is told how many rows were taken so far.

    Raises:
        UserError: a file is missing, empty, unreadable, or of an unknown kind.
    """
    for file in find_files(source, on_event):
        yield from tracked(_read_file(file), f"reading {file}", on_event)


def _read_file(file: str) -> Iterator[Item]:
    path = user_path(file)
    kinds = kind_of(path.name)
    if kinds is None:
        raise UserError(f"{file}: names of data files end in {endings()}")
    reader = {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".parquet": _parquet}[kinds[0]]
    empty = True
    try:
        for row in reader(path, file):
            empty = False
            yield row
    except ARCHIVE_ERRORS as error:
        raise UserError(
            f"{file} is a damaged {kinds[1]} archive ({error}); fetch or pack it again"
        ) from None
    except OSError as error:
        raise UserError(f"cannot read {file}: {error}") from error
    if empty:
        raise UserError(f"{file} is empty: it has no rows")


def _jsonl(path: Path, name: str) -> Iterator[Item]:
    with open_bytes(path) as file:
        for number, raw in enumerate(_lines(file, b"", name), start=1):
            if number == 1:
                raw = raw.removeprefix(b"\xef\xbb\xbf")  # a byte order mark, as Windows writes it
            if raw.strip():
                yield _parse(raw, Origin(name, number))


def _lines(file: Any, end: AnyStr, name: str) -> Iterator[AnyStr]:
    """The lines of a file, none longer than ``_LONGEST``; ``end`` is what an ended file reads."""
    number = 0
    while (line := file.readline(_LONGEST + 1)) != end:
        number += 1
        if len(line) > _LONGEST:
            raise UserError(
                f"{name}, line {number}: longer than {_LONGEST >> 20} Mi characters, which is too long for a row"
            )
        yield line


def _json(path: Path, name: str) -> Iterator[Item]:
    try:
        with open_bytes(path) as file:
            value = json.loads(file.read().decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        reason = f"line {error.lineno}, column {error.colno}: {error.msg}"
        raise UserError(
            f"{name}: not valid JSON: {reason} (if it has one object per line, name it .jsonl)"
        ) from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{name}: not UTF-8 at byte {error.start}; convert the file to UTF-8"
        ) from None
    except RecursionError:
        raise UserError(f"{name}: nested too deeply to read") from None
    if not isinstance(value, list):
        raise UserError(f"{name}: a .json data file must hold a list of objects")
    for number, row in enumerate(value, start=1):
        yield _checked(row, Origin(name, number))


def _parse(raw: bytes, origin: Origin) -> Item:
    try:
        row = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        return BadRow(origin, f"not UTF-8 at byte {error.start} of the line")
    except json.JSONDecodeError as error:
        return BadRow(origin, f"not valid JSON: {error.msg} at column {error.colno}")
    except RecursionError:
        return BadRow(origin, "nested too deeply to read")
    return _checked(row, origin)


def _checked(row: Any, origin: Origin) -> Item:
    if not isinstance(row, dict):
        return BadRow(origin, "not a JSON object")
    try:
        json.dumps(row, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return BadRow(origin, "has half of a surrogate pair (\\ud800 …), which is not a character")
    return origin, row


def _csv(path: Path, name: str) -> Iterator[Item]:
    csv.field_size_limit(_LONGEST)  # the default of 128 KiB per field refuses long documents
    with io.TextIOWrapper(open_bytes(path), encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(_lines(file, "", name), strict=True)
        try:
            for row in reader:
                # A quoted field may span lines: the reader is on the row's last one.
                origin = Origin(name, reader.line_num)
                if None in row:
                    yield BadRow(origin, "has more fields than the header")
                elif None in row.values():
                    yield BadRow(origin, "has fewer fields than the header")
                else:
                    yield origin, dict(row)
        except csv.Error as error:
            raise UserError(f"{name}, line {reader.line_num}: not valid CSV: {error}") from None
        except UnicodeDecodeError as error:
            raise UserError(
                f"{name}: not UTF-8 at byte {error.start}; convert the file to UTF-8"
            ) from None


def _parquet(path: Path, name: str) -> Iterator[Item]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        number = 0
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield Origin(name, number), row
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise UserError(f"{name}: not a readable Parquet file: {error}") from None
