"""Rows in Parquet and Arrow files, and what Arrow does to JSON.

A column of Arrow has one type. Objects with different keys become structs with all of them, and the
keys that an object lacks are null. Our own files keep such values as JSON text (the ``arrow.json``
type, which Parquet calls JSON), so that they come back as they were. In the files of others a null in
an object is taken as a key that the object lacks; where all objects have null, somebody wrote it.
"""

import base64
import datetime
import decimal
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from luthier.data.json_rows import Parsed, checked
from luthier.errors import UserError

Row = dict[str, Any]

# In a schema: null means that a row has no such field, except in the columns that are listed.
_OURS = b"luthier.nulls"
_JSON = "arrow.json"


def arrow_rows(path: Path, name: str) -> Iterator[Parsed]:
    """The rows of a Parquet or Arrow file (stream or file format), numbered from 1.

    Raises:
        UserError: it is damaged, or something else.
    """
    import pyarrow as pa

    kind = "Parquet" if path.suffix.lower() == ".parquet" else "Arrow"
    try:
        yield from rows_of_batches(_batches(path))
    except (pa.ArrowException, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{name}: not a readable {kind} file: {error}") from None


def rows_of_batches(batches: Iterable[Any]) -> Iterator[Parsed]:
    """The rows of Arrow batches or tables, numbered from 1."""
    number = 0
    for batch in batches:
        clean = _cleaner(batch.schema)
        # Arrow sees to it that its own texts are characters, but not to what JSON escapes.
        see_to: Callable[[Row], Row | str] = checked if _JSON in str(batch.schema) else _same
        for row in batch.to_pylist(maps_as_pydicts="lossy"):
            number += 1
            yield number, see_to(clean(row))


def _same(row: Row) -> Row:
    return row


def _batches(path: Path) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if path.suffix.lower() == ".parquet":
        with pq.ParquetFile(path) as file:
            yield from file.iter_batches(batch_size=1024)
        return
    with pa.memory_map(str(path)) as source:
        if source.read(6) == b"ARROW1":
            reader = pa.ipc.open_file(source)
            batches: Iterable[Any] = map(reader.get_batch, range(reader.num_record_batches))
        else:
            source.seek(0)
            batches = pa.ipc.open_stream(source)
        for batch in batches:
            batch.validate(full=True)  # a length that lies would end the process
            yield from (batch.slice(at, 1024) for at in range(0, batch.num_rows, 1024))


def to_table(rows: Sequence[Row]) -> Any:
    """An Arrow table from which ``arrow_rows`` gives the same JSON objects back."""
    import pyarrow as pa

    columns, nulls = {}, []
    for name in dict.fromkeys(key for row in rows for key in row):
        values = [row.get(name, _ABSENT) for row in rows]
        array = _as_they_are(values)
        if array is None:
            texts = [None if value is _ABSENT else _as_json(value) for value in values]
            array = pa.ExtensionArray.from_storage(
                pa.json_(pa.string()), pa.array(texts, pa.string())
            )
        elif any(value is None for value in values):
            nulls.append(name)
        columns[name] = array
    return pa.table(columns).replace_schema_metadata({_OURS: json.dumps(nulls)})


_ABSENT = object()  # in place of a field that a row does not have


def _as_they_are(values: Sequence[Any]) -> Any:
    """The values as an Arrow array, or None where it would not give them back."""
    import pyarrow as pa

    given = [None if value is _ABSENT else value for value in values]
    if given.count(None) not in (values.count(None), values.count(_ABSENT)):
        return None  # a null would mean two things
    try:
        array = pa.array(given)
    except (pa.ArrowException, OverflowError):
        return None
    if not pa.types.is_nested(array.type):
        return array if array.to_pylist() == given else None
    # Parquet has no objects without keys.
    same = "struct<>" not in str(array.type) and _as_json(array.to_pylist()) == _as_json(given)
    return array if same else None


def _as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _cleaner(schema: Any) -> Callable[[Row], Row]:
    """What turns a row of ``schema`` into the JSON object that was meant."""
    metadata = schema.metadata or {}
    listed = json.loads(metadata[_OURS]) if _OURS in metadata else schema.names
    nulls = {name for name in schema.names if name in listed}
    # Of our own objects, those in which Arrow would change something are JSON text.
    ours = _OURS in metadata
    columns = {field.name: _reader(field.type, ours) for field in schema}
    columns |= {
        name: partial(_named, names)
        for name, names in _label_names(metadata).items()
        if name in columns
    }

    def clean(row: Row) -> Row:
        return {
            key: value if value is None else columns[key](value)
            for key, value in row.items()
            if value is not None or key in nulls
        }

    return clean


def _named(names: Sequence[str], label: Any) -> Any:
    """The name of a class; rows without a class have -1."""
    return names[label] if isinstance(label, int) and 0 <= label < len(names) else label


def _label_names(metadata: dict[bytes, bytes]) -> dict[str, list[str]]:
    """Names of the classes that a data set of the hub stores as numbers."""
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
        found = {
            name: kind["names"]
            for name, kind in features.items()
            if isinstance(kind, dict) and kind.get("_type") == "ClassLabel"
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
    return {
        name: names
        for name, names in found.items()
        if isinstance(names, list) and all(isinstance(each, str) for each in names)
    }


def _reader(kind: Any, exact: bool) -> Callable[[Any], Any]:
    """What makes JSON of a value of an Arrow type that is not null.

    ``exact``: a null in an object is one.
    """
    import pyarrow as pa

    if getattr(kind, "extension_name", "") == _JSON:
        return json.loads
    if isinstance(kind, pa.BaseExtensionType):
        return _reader(kind.storage_type, exact)
    if pa.types.is_struct(kind):
        # A field of the type null is null in every object: that was no alignment.
        fields = {f.name: (_reader(f.type, exact), exact or pa.types.is_null(f.type)) for f in kind}

        def read_struct(value: Row) -> Row:
            return {
                key: inner if inner is None else fields[key][0](inner)
                for key, inner in value.items()
                if inner is not None or fields[key][1]
            }

        return read_struct
    if pa.types.is_map(kind):
        inner = _reader(kind.item_type, exact)
        return lambda value: {k: v if v is None else inner(v) for k, v in value.items()}
    if pa.types.is_nested(kind) and hasattr(kind, "value_type"):  # lists of every kind
        inner = _reader(kind.value_type, exact)
        return lambda value: [each if each is None else inner(each) for each in value]
    return _plain


def _plain(value: Any) -> Any:
    """A value that JSON has, for one that it may not have."""
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, datetime.timedelta | decimal.Decimal):
        return str(value)
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return base64.b64encode(value).decode()
    return value
