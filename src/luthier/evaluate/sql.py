"""Text-to-SQL: judge an answer by running it, against a database that it cannot change."""

import math
import re
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from luthier.errors import UserError

# What one query may use. A step is one instruction of SQLite's virtual machine: this many take
# about half a second. Text is in bytes and for each value, a pattern (of LIKE) too.
MAX_STEPS = 50_000_000
MAX_ROWS = 10_000
MAX_TEXT = 1_000_000
MAX_PATTERN = 1_000

_STEPS_A_CHECK = 10_000
_ALLOWED = {
    sqlite3.SQLITE_SELECT,
    sqlite3.SQLITE_READ,
    sqlite3.SQLITE_FUNCTION,
    sqlite3.SQLITE_RECURSIVE,
}
_FENCE = re.compile(
    r"```(?:(?!select\b|with\b|values\b)[\w+-]*[ \t\r]*\n|sql(?:ite)?\b)?(.*?)(?:```|\Z)",
    re.DOTALL | re.IGNORECASE,
)
# Quoted text and comments are one token each, so that what is inside them is never looked at.
_TOKEN = re.compile(
    r"'[^']*'?|\"[^\"]*\"?|`[^`]*`?|--[^\n]*|/\*.*?(?:\*/|\Z)|\w+|[^\w\s]", re.DOTALL
)


def open_database(path: Path) -> sqlite3.Connection:
    """Open a database: in memory from a ``.sql`` script, read-only from a SQLite file.

    Raises:
        UserError: the file is missing, has another suffix, is broken, or holds no table.
    """
    if not path.is_file():
        raise UserError(f"no database at {path}")
    suffix = path.suffix.lower()
    if suffix not in {".sql", ".sqlite", ".db"}:
        raise UserError(f"{path}: the name of a database must end in .sql, .sqlite or .db")
    connection = None
    try:
        if suffix == ".sql":
            connection = sqlite3.connect(":memory:")
            # A script that attached a file could write to it.
            connection.set_authorizer(_without_attach)
            connection.executescript(path.read_text(encoding="utf-8"))
            connection.set_authorizer(None)
        else:
            connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
        tables = connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0]
    except (OSError, ValueError, sqlite3.Error) as error:
        if connection is not None:
            connection.close()
        raise UserError(f"{path}: cannot read the database: {error}") from error
    if not tables:
        connection.close()
        raise UserError(f"{path}: the database has no table")
    return connection


def extract_sql(answer: str) -> str:
    """The query in a model's answer: its first fenced block, else all of it, up to the first ``;``.

    A ``;`` in quotes or in a comment does not end the query. A fence may lack its end.
    """
    fence = _FENCE.search(answer)
    text = answer if fence is None else fence.group(1)
    for token in _TOKEN.finditer(text):
        if token.group() == ";":
            text = text[: token.end()]
            break
    return text.strip()


def run_query(connection: sqlite3.Connection, query: str) -> list[tuple[Any, ...]] | None:
    """The rows of one read-only ``query``, or None where it fails.

    It fails on any SQL error, on an empty query, on anything but reading (writes, ``ATTACH``,
    ``PRAGMA``, loading extensions), and past ``MAX_STEPS``, ``MAX_ROWS``, ``MAX_TEXT`` or
    ``MAX_PATTERN``: part of a result is none.
    """
    try:
        with _guarded(connection):
            cursor = connection.execute(query)
            rows = cursor.fetchmany(MAX_ROWS + 1)
            is_query = cursor.description is not None
            cursor.close()
    # A warning is what Python 3.11 raises for two statements; a ValueError, for text with a null
    # character or half a surrogate pair.
    except (sqlite3.Error, sqlite3.Warning, ValueError):
        return None
    return rows if is_query and len(rows) <= MAX_ROWS else None


def execution_match(connection: sqlite3.Connection, answer: str, reference: str) -> bool:
    """Whether the query in ``answer`` gives the rows that ``reference`` gives.

    Order counts only where the reference has an ``ORDER BY`` of its own (not just in a subquery);
    then tied rows must come in its order too, so end its keys with a unique one. Columns match by
    position, not by name. Numbers are equal whatever their type (``1`` and ``1.0``), floats to
    1e-6 relative (1e-9 absolute near zero); NULL equals NULL; text never equals a number.

    Raises:
        ValueError: the reference itself fails.
    """
    wanted = run_query(connection, reference)
    if wanted is None:
        raise ValueError(f"the reference query fails: {reference}")
    got = run_query(connection, extract_sql(answer))
    if got is None or len(got) != len(wanted):
        return False
    if _is_ordered(reference):
        return all(map(_same_row, got, wanted))
    return _same_multiset(got, wanted)


@contextmanager
def _guarded(connection: sqlite3.Connection) -> Iterator[None]:
    checks = 0

    def out_of_steps() -> bool:
        nonlocal checks
        checks += 1
        return checks * _STEPS_A_CHECK >= MAX_STEPS

    limits = {
        sqlite3.SQLITE_LIMIT_LENGTH: MAX_TEXT,
        sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: MAX_PATTERN,
    }
    before = {limit: connection.setlimit(limit, value) for limit, value in limits.items()}
    connection.set_authorizer(_read_only)
    connection.set_progress_handler(out_of_steps, _STEPS_A_CHECK)
    try:
        yield
    finally:
        connection.set_progress_handler(None, 0)
        connection.set_authorizer(None)
        for limit, value in before.items():
            connection.setlimit(limit, value)


def _read_only(action: int, _table: str | None, name: str | None, *_: str | None) -> int:
    if action not in _ALLOWED:
        return sqlite3.SQLITE_DENY
    if action == sqlite3.SQLITE_FUNCTION and name == "load_extension":
        return sqlite3.SQLITE_DENY
    return sqlite3.SQLITE_OK


def _without_attach(action: int, *_: str | None) -> int:
    return sqlite3.SQLITE_DENY if action == sqlite3.SQLITE_ATTACH else sqlite3.SQLITE_OK


def _is_ordered(query: str) -> bool:
    depth, previous = 0, ""
    for token in _TOKEN.findall(query):
        if token.startswith(("--", "/*")):
            continue
        word = token.upper()
        depth += (word == "(") - (word == ")")
        if depth == 0 and previous == "ORDER" and word == "BY":
            return True
        previous = word
    return False


def _same_multiset(got: list[tuple[Any, ...]], wanted: list[tuple[Any, ...]]) -> bool:
    # What is exactly equal goes first; only rows with rounding in them are compared pair by pair.
    # Sorting puts likely pairs at the front, so that few are tried.
    extra = sorted((Counter(got) - Counter(wanted)).elements(), key=repr)
    missing = sorted((Counter(wanted) - Counter(got)).elements(), key=repr)
    for row in extra:
        match = next((i for i, other in enumerate(missing) if _same_row(row, other)), None)
        if match is None:
            return False
        del missing[match]
    return not missing


def _same_row(row: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    return len(row) == len(other) and all(map(_same_value, row, other))


def _same_value(value: Any, other: Any) -> bool:
    numbers = isinstance(value, int | float) and isinstance(other, int | float)
    # Two integers are compared exactly, however large.
    if numbers and (isinstance(value, float) or isinstance(other, float)):
        return math.isclose(value, other, rel_tol=1e-6, abs_tol=1e-9)
    return bool(value == other)
