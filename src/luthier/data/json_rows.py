"""JSON as people have it: an object a line, a list of objects, or objects one after another.

The ending does not tell: ``.json`` files hold JSON lines, ``.jsonl`` files hold lists.
"""

import json
from collections.abc import Iterator
from io import BufferedReader
from itertools import chain
from typing import Any

from luthier.data.lines import bounded_lines
from luthier.errors import UserError

# Where a row stands (its line, or its number in a list), and the row, or why there is none.
Parsed = tuple[int, dict[str, Any] | str]

# Keys under which tools put all rows of a file; other lists of objects belong to a row.
_WRAPPERS = ("data", "rows", "examples", "instances", "items", "records", "samples", "train")
_OTHER_SPLITS = ("test", "validation", "valid", "dev")

_decoder = json.JSONDecoder()
_FEW = 100  # brackets


def json_rows(file: BufferedReader, name: str) -> Iterator[Parsed]:
    """The rows of a JSON file, whose shape its first two lines tell.

    Raises:
        UserError: a list is broken, there is more than one list of rows, or a line has no end.
    """
    # A list may be one line of any length.
    read = [file.readline()] if file.peek(1)[:1] == b"[" else []
    following = bounded_lines(file, name, len(read) + 1)
    while sum(map(_is_filled, read)) < 2 and (line := next(following, b"")):
        read.append(line)
    told = list(filter(_is_filled, read))
    if not told:
        return
    if _is_json_lines(told):
        for number, raw in enumerate(chain(read, following), start=1):
            if raw.strip():
                yield number, parse_line(raw)
        return
    text = _text(b"".join(read) + file.read(), name)
    yield from _list(text, name) if told[0].lstrip()[:1] == b"[" else _objects(text, name)


def _is_filled(line: bytes) -> bool:
    return bool(line.strip())


def parse_line(raw: bytes) -> dict[str, Any] | str:
    """The object of one line, or why there is none. A comma at its end belongs to no value."""
    try:
        text = raw.decode("utf-8").strip()
        value = json.loads(text[:-1] if text.endswith("},") else text)
    except UnicodeDecodeError as error:
        return f"not UTF-8 at byte {error.start} of the line"
    except json.JSONDecodeError as error:
        return f"not valid JSON: {error.msg} at column {error.colno}"
    except (RecursionError, ValueError) as error:
        return _odd(error)
    # Raw UTF-8 holds no half of a pair, and few brackets nest no deeper than they are many.
    if b"\\u" not in raw and raw.count(b"{") + raw.count(b"[") < _FEW and isinstance(value, dict):
        return value
    return checked(value)


def checked(row: Any) -> dict[str, Any] | str:
    """``row`` if it can be one, else why not."""
    if not isinstance(row, dict):
        return f"not a JSON object but {_KINDS.get(type(row), 'a value')}"
    try:
        json.dumps(row, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        return "nested too deeply to read"
    except UnicodeEncodeError:
        return "has half of a surrogate pair (\\ud800 …), which is not a character"
    return row


_KINDS = {list: "a list", str: "a text", int: "a number", float: "a number"}


def _odd(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply to read"
    return f"has a number that cannot be read: {error}"  # of more than 4,300 digits


def _is_json_lines(told: list[bytes]) -> bool:
    """Whether a file that begins with these lines holds one value a line."""
    first = told[0].decode("utf-8", "replace").strip().removesuffix(",")
    if first[:1] not in ("{", "["):
        return True
    try:
        value = json.loads(first)
    except (ValueError, RecursionError):
        # A line that breaks off is a broken row where the next does not continue it but is a row.
        return first[0] == "{" and (
            len(told) == 1
            or (not _goes_on(told[0] + told[1]) and isinstance(parse_line(told[1]), dict))
        )
    # A line alone is a row, a list of rows, or an object around one.
    return len(told) > 1 or not (isinstance(value, list) or _wrapped(value))


def _goes_on(raw: bytes) -> bool:
    """Whether ``raw`` is the beginning of valid JSON."""
    text = raw.decode("utf-8", "replace").rstrip()
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        return error.pos >= len(text)
    except (ValueError, RecursionError):
        return False
    return True


def _text(raw: bytes, name: str) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{name}: not UTF-8 at byte {error.start}; convert the file to UTF-8"
        ) from None


def _list(text: str, name: str) -> Iterator[Parsed]:
    """The elements of a list, whose last may have a comma after it; numbered from 1."""
    at, number = _after_space(text, text.index("[") + 1), 0
    while text[at : at + 1] != "]":
        number += 1
        value, at = _element(text, at, name)
        yield number, checked(value)
        at = _after_space(text, at)
        if text[at : at + 1] == ",":
            at = _after_space(text, at + 1)
        elif text[at : at + 1] != "]":
            what = "the file ends inside its list" if at >= len(text) else "expected ',' or ']'"
            raise UserError(f"{name}: not valid JSON: {_place(text, at)}: {what}")
    at = _after_space(text, at + 1)
    if at < len(text):
        raise UserError(
            f"{name}: not valid JSON: {_place(text, at)}: something follows the end of the list"
        )


def _element(text: str, at: int, name: str) -> tuple[Any, int]:
    try:
        return _decoder.raw_decode(text, at)
    except json.JSONDecodeError as error:
        raise UserError(f"{name}: not valid JSON: {_place(text, error.pos)}: {error.msg}") from None
    except (RecursionError, ValueError) as error:
        raise UserError(f"{name}: {_place(text, at)}: {_odd(error)}") from None


def _objects(text: str, name: str) -> Iterator[Parsed]:
    """Objects over several lines each, or one that holds the list of rows."""
    at = _after_space(text, 0)
    try:
        value, end = _decoder.raw_decode(text, at)
        alone = _after_space(text, end) >= len(text)
    except (ValueError, RecursionError):
        alone = False
    key = _wrapped(value) if alone else None
    if key is not None:
        others = [k for k in _OTHER_SPLITS if k != key and _is_rows(value.get(k))]
        if others:
            raise UserError(
                f"{name} holds several lists of rows ({', '.join([key, *others])}); put each into a "
                "file of its own"
            )
        yield from ((number, checked(row)) for number, row in enumerate(value[key], start=1))
        return
    line, counted, last = 1, 0, 0
    while at < len(text):
        line, counted = line + text.count("\n", counted, at), at
        try:
            value, at = _decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            place = f"line {line + text.count(chr(10), at, error.pos)}, column {error.colno}"
            row: dict[str, Any] | str = f"not valid JSON: {place}: {error.msg}"
            at = _next_object(text, at)
        except (RecursionError, ValueError) as error:
            row, at = _odd(error), _next_object(text, at)
        else:
            row = checked(value)
        if line == last:
            row = "a second object on this line; put each on a line of its own"
        yield line, row
        last = line
        at = _after_space(text, at)
        if text[at : at + 1] == ",":
            at = _after_space(text, at + 1)


def _next_object(text: str, at: int) -> int:
    """Where, after a broken object, the next may begin: objects stand at the left margin."""
    found = text.find("\n{", at)
    return len(text) if found < 0 else found + 1


def _wrapped(value: Any) -> str | None:
    """The key under which an object holds the rows of its file, or None: it is a row itself."""
    if not isinstance(value, dict):
        return None
    lists = [key for key, inner in value.items() if _is_rows(inner)]
    known = [key for key in lists if key in _WRAPPERS]
    return known[0] if len(known) == 1 and set(lists) <= {*_WRAPPERS, *_OTHER_SPLITS} else None


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)


def _after_space(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def _place(text: str, at: int) -> str:
    return f"line {text.count(chr(10), 0, at) + 1}, column {at - text.rfind(chr(10), 0, at)}"
