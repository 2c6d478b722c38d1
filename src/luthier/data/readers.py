"""Files to rows: JSONL, JSON, CSV and Parquet, each row with its place."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from luthier.data.conversation import Origin
from luthier.errors import UserError

READABLE = (".jsonl", ".json", ".csv", ".parquet")


class BadRow(Exception):
    """A row that cannot be used; ``origin`` says where, the message why."""

    def __init__(self, origin: Origin, reason: str) -> None:
        super().__init__(f"{origin}: {reason}")
        self.origin = origin
        self.reason = reason


def read_rows(file: str) -> Iterator[tuple[Origin, dict[str, Any]] | BadRow]:
    """Stream the rows of ``file``, its kind told by its ending.

    A row that is not valid comes as a ``BadRow`` value, so that one broken line hides no other.

    Raises:
        UserError: the file is missing, empty, unreadable, or of an unknown kind.
    """
    path = Path(file).expanduser()
    kind = path.suffix.lower()
    if path.is_dir():
        raise UserError(f"{file} is a folder; name the files in it")
    if not path.exists():
        raise UserError(f"no data file at {file}")
    if kind not in READABLE:
        raise UserError(f"{file}: data files end in {', '.join(READABLE)}")
    reader = {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".parquet": _parquet}[kind]
    empty = True
    try:
        for row in reader(path, file):
            empty = False
            yield row
    except OSError as error:
        raise UserError(f"cannot read {file}: {error}") from error
    if empty:
        raise UserError(f"{file} is empty: it holds no rows")


def _jsonl(path: Path, name: str) -> Iterator[tuple[Origin, dict[str, Any]] | BadRow]:
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            if number == 1:
                raw = raw.removeprefix(b"\xef\xbb\xbf")  # a byte order mark, as Windows writes it
            if raw.strip():
                yield _parse(raw, Origin(name, number))


def _json(path: Path, name: str) -> Iterator[tuple[Origin, dict[str, Any]] | BadRow]:
    try:
        value = json.loads(path.read_bytes().decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        reason = f"line {error.lineno}, column {error.colno}: {error.msg}"
        raise UserError(
            f"{name}: not valid JSON: {reason} (one object a line? then name it .jsonl)"
        ) from None
    except UnicodeDecodeError as error:
        raise UserError(f"{name}: not UTF-8 at byte {error.start}; convert the file") from None
    except RecursionError:
        raise UserError(f"{name}: nested too deeply to read") from None
    if not isinstance(value, list):
        raise UserError(f"{name}: a .json data file holds a list of objects")
    for number, row in enumerate(value, start=1):
        yield _checked(row, Origin(name, number))


def _parse(raw: bytes, origin: Origin) -> tuple[Origin, dict[str, Any]] | BadRow:
    try:
        row = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        return BadRow(origin, f"not UTF-8 at byte {error.start} of the line")
    except json.JSONDecodeError as error:
        return BadRow(origin, f"not valid JSON: {error.msg} at column {error.colno}")
    except RecursionError:
        return BadRow(origin, "nested too deeply to read")
    return _checked(row, origin)


def _checked(row: Any, origin: Origin) -> tuple[Origin, dict[str, Any]] | BadRow:
    if not isinstance(row, dict):
        return BadRow(origin, "not a JSON object")
    try:
        json.dumps(row, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return BadRow(origin, "holds half of a surrogate pair (\\ud800 …), which is no character")
    return origin, row


def _csv(path: Path, name: str) -> Iterator[tuple[Origin, dict[str, Any]] | BadRow]:
    csv.field_size_limit(2**31 - 1)  # the default of 128 KiB a field refuses long documents
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            for row in reader:
                # A quoted field may span lines: the reader stands on the row's last one.
                origin = Origin(name, reader.line_num)
                if None in row:
                    yield BadRow(origin, "more fields than the header names")
                elif None in row.values():
                    yield BadRow(origin, "fewer fields than the header names")
                else:
                    yield origin, dict(row)
        except csv.Error as error:
            raise UserError(f"{name}, line {reader.line_num}: not valid CSV: {error}") from None
        except UnicodeDecodeError as error:
            raise UserError(f"{name}: not UTF-8 at byte {error.start}; convert the file") from None


def _parquet(path: Path, name: str) -> Iterator[tuple[Origin, dict[str, Any]] | BadRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        number = 0
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield Origin(name, number), row
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise UserError(f"{name}: not a readable Parquet file: {error}") from None
