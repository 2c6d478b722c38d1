"""CSV and TSV: tables as text, with the separator that the file has."""

import csv
import io
import re
from collections.abc import Iterator, Sequence
from itertools import chain, islice

from luthier.data.json_rows import Parsed
from luthier.data.lines import LONGEST, bounded_lines
from luthier.errors import UserError

_SEPARATORS = {",": "a comma", ";": "a semicolon", "\t": "a tab"}
_TOLD = re.compile(r"sep=([^\w\"\s]|\t)\s*", re.IGNORECASE)  # Excel's own way, in the first line
_TRIED = 20  # lines after the header that tell the separator


def delimited_rows(file: io.BufferedReader, name: str, separator: str | None) -> Iterator[Parsed]:
    """The rows of a table, all values text; the number of a row is that of its last line.

    Args:
        separator: None tells it by the header and the first rows: comma, semicolon or tab.

    Raises:
        UserError: it is not a table, not UTF-8, or several separators fit.
    """
    csv.field_size_limit(LONGEST)  # the default of 128 KiB per field refuses long documents
    with io.TextIOWrapper(file, encoding="utf-8", newline="") as text:
        reader = None
        try:
            lines = bounded_lines(text, name)
            start = list(islice(lines, _TRIED + 1))
            skipped = 0
            told = _TOLD.fullmatch(start[0]) if start else None
            if told is not None:
                separator, skipped = told[1], 1
                start.pop(0)
            separator = separator or _separator(start, name)
            reader = csv.reader(chain(start, lines), delimiter=separator, strict=True)
            names = column_names(next(reader, []), name)
            for values in reader:
                if values:
                    yield reader.line_num + skipped, table_row(names, values)
        except csv.Error as error:
            place = reader.line_num if reader is not None else 1
            raise UserError(f"{name}, line {place}: not valid CSV: {error}") from None
        except UnicodeDecodeError as error:
            raise UserError(
                f"{name}: not UTF-8 at byte {error.start}; convert the file to UTF-8"
            ) from None


def column_names(header: Sequence[str], name: str) -> list[str]:
    """The names in a header, without the spaces around them; a column without one is ``column N``.

    Raises:
        UserError: two columns have the same name.
    """
    names = [text.strip() or f"column {number}" for number, text in enumerate(header, start=1)]
    twice = next((each for each in names if names.count(each) > 1), None)
    if twice is not None:
        raise UserError(f"{name} has two columns named '{twice}'; rename one of them")
    return names


def table_row(names: Sequence[str], values: Sequence[str]) -> dict[str, str] | str:
    """A row of a table, or what is wrong with it. An empty field of no name is none."""
    if len(values) > len(names):
        return "has more fields than the header"
    if len(values) < len(names):
        return "has fewer fields than the header"
    pairs = zip(names, values, strict=True)
    return {key: value for key, value in pairs if value or not key.startswith("column ")}


def _separator(start: Sequence[str], name: str) -> str:
    """What separates the fields: it splits the header, and the rows into as many pieces."""
    splits = [each for each in _SEPARATORS if _widths(start[:1], each)[:1] > [1]]
    fits = [each for each in splits if len(set(_widths(start, each))) == 1]
    found = fits if len(splits) > 1 else splits
    if len(splits) > 1 and len(found) != 1:
        named = " or ".join(_SEPARATORS[each] for each in splits)
        raise UserError(
            f"{name}: its header may be separated by {named}; put names that hold such a character "
            "in double quotes"
        )
    return found[0] if found else ","


def _widths(lines: Sequence[str], separator: str) -> list[int]:
    """How many fields each row has; the last one may be cut off, so it does not count."""
    widths = []
    try:
        for row in csv.reader(lines, delimiter=separator, strict=True):
            widths.append(len(row))
    except csv.Error:
        pass
    return [width for width in widths if width]
