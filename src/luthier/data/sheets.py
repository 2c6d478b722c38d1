"""Spreadsheets, .xlsx and .ods, as tables of text."""

import datetime
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from luthier.data.delimited import column_names, table_row
from luthier.data.json_rows import Parsed
from luthier.data.kinds import check_unpacked
from luthier.errors import UserError
from luthier.extras import need

_MOST_CELLS = 50_000_000  # of a sheet, empty ones between others included: they are held in memory
_CELL = re.compile(rb"""\br=["']([A-Za-z]{1,3})([0-9]{1,7})["']""")
_CHUNK, _OVERLAP = 1 << 20, 32


def sheet_rows(path: Path, name: str) -> Iterator[Parsed]:
    """The rows of the only sheet that has any, below its first row, which names the columns.

    Values are text as a sheet shows it: 4 and not 4.0, dates as 2026-11-25. Empty rows are no rows.

    Raises:
        UserError: it is damaged or locked, too large, or has several sheets with rows.
    """
    need("python_calamine", extra="sheets", what=f"a {path.suffix.lower()} file as data")
    sheets = {title: rows for title, rows in _sheets(path, name) if rows}
    if len(sheets) > 1:
        raise UserError(
            f"{name} has rows in several sheets ({', '.join(sheets)}); save the one to train on as a "
            "file of its own"
        )
    for rows in sheets.values():
        names: list[str] = []
        for number, values in rows:
            if names:
                yield number, table_row(names, values)
            else:
                names = column_names(values, name)


def _sheets(path: Path, name: str) -> Iterator[tuple[str, list[tuple[int, list[str]]]]]:
    """Title and rows of each sheet; a row has its number in the sheet."""
    from python_calamine import CalamineError, CalamineWorkbook

    try:
        _check_size(path, name)
        with CalamineWorkbook.from_path(path) as book:
            for title in book.sheet_names:
                sheet = book.get_sheet_by_name(title)
                first = (sheet.start or (0, 0))[0] + 1
                rows = ([_as_text(cell) for cell in row] for row in sheet.to_python())
                yield title, [each for each in enumerate(rows, start=first) if any(each[1])]
    except (CalamineError, zipfile.BadZipFile, NotImplementedError) as error:
        raise UserError(f"{name}: not a readable spreadsheet: {error}") from None
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of the Rust library, and no Exception
            raise
        raise UserError(f"{name}: not a readable spreadsheet: {error}") from None


def _check_size(path: Path, name: str) -> None:
    """Refuse what takes more memory than any table of text."""
    with zipfile.ZipFile(path) as archive:
        check_unpacked(path, sum(member.file_size for member in archive.infolist()))
        for member in archive.namelist():
            if not member.startswith("xl/worksheets/"):
                continue  # the library itself bounds the cells of .ods
            height = width = 0
            with archive.open(member) as file:
                before = b""
                while chunk := file.read(_CHUNK):
                    for letters, digits in _CELL.findall(before + chunk):
                        height = max(height, int(digits))
                        width = max(width, _column_number(letters))
                    before = chunk[-_OVERLAP:]
            if height * width > _MOST_CELLS:
                raise UserError(
                    f"{name} has a sheet of {height:,} rows and {width:,} columns, too large to read; "
                    "delete the empty ones, or save it as CSV"
                )


def _column_number(letters: bytes) -> int:
    number = 0
    for letter in letters.upper():
        number = 26 * number + letter - ord("A") + 1
    return number


def _as_text(cell: Any) -> str:
    if isinstance(cell, bool):
        return str(cell).upper()
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    if isinstance(cell, datetime.datetime) and cell.time() == datetime.time():
        return cell.date().isoformat()
    return cell.isoformat() if isinstance(cell, datetime.date | datetime.time) else str(cell)
