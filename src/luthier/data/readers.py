"""Files to rows: text, tables and Arrow, each row with its place."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from luthier.data.arrow_rows import arrow_rows
from luthier.data.conversation import Origin
from luthier.data.delimited import delimited_rows
from luthier.data.encodings import as_utf8
from luthier.data.json_rows import Parsed, json_rows
from luthier.data.kinds import ARCHIVE_ERRORS, endings, kind_of, open_bytes
from luthier.data.sheets import sheet_rows
from luthier.data.sources import find_files
from luthier.errors import UserError
from luthier.events import OnEvent, ignore, tracked
from luthier.files import user_path


class BadRow(Exception):
    """A row that cannot be used; ``origin`` says where, the message says why."""

    def __init__(self, origin: Origin, reason: str) -> None:
        super().__init__(f"{origin}: {reason}")
        self.origin = origin
        self.reason = reason


Item = tuple[Origin, dict[str, Any]] | BadRow


def read_rows(source: str, on_event: OnEvent = ignore) -> Iterator[Item]:
    """Stream the rows of a source, which ``find_files`` explains, file by file.

    A row that is not valid comes as a ``BadRow`` value, so that one broken line does not hide the others.
    ``on_event`` receives the number of rows read so far.

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
    empty = True
    try:
        for line, row in _READERS[kinds[0]](path, file):
            empty = False
            origin = Origin(file, line)
            yield BadRow(origin, row) if isinstance(row, str) else (origin, row)
    except ARCHIVE_ERRORS as error:
        raise UserError(
            f"{file} is a damaged {kinds[1]} archive ({error}); fetch or pack it again"
        ) from None
    except OSError as error:
        raise UserError(f"cannot read {file}: {error}") from error
    if empty:
        raise UserError(f"{file} is empty: it has no rows")


def _json(path: Path, name: str) -> Iterator[Parsed]:
    with open_bytes(path) as file:
        yield from json_rows(as_utf8(file, name), name)


def _csv(path: Path, name: str) -> Iterator[Parsed]:
    with open_bytes(path) as file:
        yield from delimited_rows(as_utf8(file, name), name, separator=None)


def _tsv(path: Path, name: str) -> Iterator[Parsed]:
    with open_bytes(path) as file:
        yield from delimited_rows(as_utf8(file, name), name, separator="\t")


_READERS: dict[str, Callable[[Path, str], Iterator[Parsed]]] = {
    ".jsonl": _json,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _tsv,
    ".parquet": arrow_rows,
    ".arrow": arrow_rows,
    ".xlsx": sheet_rows,
    ".ods": sheet_rows,
}
