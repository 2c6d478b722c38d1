"""Parquet and Arrow give back the JSON that went in, and say of foreign files what was meant."""

import datetime
import decimal
import json
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import write_rows
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.data.convert import convert_data
from luthier.data.readers import BadRow, read_rows
from luthier.data.writers import write_rows as write_data
from luthier.errors import UserError

text = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=6)
names = st.sampled_from(["a", "b", "c", "name"])
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)
json_rows = st.lists(st.dictionaries(names, values, min_size=1, max_size=4), min_size=1, max_size=5)


def read(path: Path) -> list[dict[str, Any]]:
    items = list(read_rows(str(path)))
    assert not any(isinstance(item, BadRow) for item in items), items
    return [item[1] for item in items if not isinstance(item, BadRow)]


@settings(max_examples=150, deadline=None)
@given(rows=json_rows)
def test_any_rows_come_back_from_parquet(rows: list[dict[str, Any]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.parquet"
        write_data(path, rows)
        assert json.dumps(read(path), sort_keys=True) == json.dumps(rows, sort_keys=True)


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def tool(name: str, **properties: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


WEATHER = tool("weather", city={"type": "string"})
PAY = tool("pay", amount={"type": "number"}, to={"type": "string"})


def asked(*calls: dict[str, Any], tools: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "messages": [
            {"role": "user", "content": "?"},
            {"role": "assistant", "content": "", "tool_calls": list(calls)},
            {"role": "tool", "content": "4"},
            {"role": "assistant", "content": "done"},
        ],
        "tools": tools,
    }


TOOL_ROWS = [
    asked(call("weather", city="Oslo"), tools=[WEATHER]),
    asked(call("pay", amount=3, to="me"), call("now"), tools=[PAY, WEATHER, tool("now")]),
]


def test_tool_calls_come_back_as_they_were(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "t.jsonl", TOOL_ROWS)
    convert_data([str(source)], "messages", tmp_path / "t.parquet")
    assert read(tmp_path / "t.parquet") == TOOL_ROWS
    convert_data([str(tmp_path / "t.parquet")], "messages", tmp_path / "back.jsonl")
    assert (tmp_path / "back.jsonl").read_text() == source.read_text()


def test_what_arrow_holds_as_it_is_stays_readable_to_others(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": c}], "score": 1.5} for c in "ab"]
    write_data(tmp_path / "a.parquet", rows)
    assert pq.read_table(tmp_path / "a.parquet").to_pylist() == rows


def test_keys_that_arrow_added_are_taken_out_of_foreign_files(tmp_path: Path) -> None:
    # Somebody's null stands in every object; one that others lack is Arrow's.
    rows = [{**row, "note": None} for row in TOOL_ROWS]
    for row in rows:
        row["messages"] = [{**message, "refusal": None} for message in row["messages"]]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    aligned = pq.read_table(tmp_path / "a.parquet").to_pylist()
    assert aligned[0]["messages"][1]["tool_calls"][0]["function"]["arguments"]["amount"] is None
    expected = json.loads(json.dumps(rows))
    assert read(tmp_path / "a.parquet") == expected


@pytest.mark.parametrize("kind", ["stream", "file"])
def test_arrow_files(tmp_path: Path, kind: str) -> None:
    table = pa.table({"text": [f"t{n}" for n in range(3000)]})
    path = tmp_path / "a.arrow"
    new = pa.ipc.new_stream if kind == "stream" else pa.ipc.new_file
    with new(str(path), table.schema) as writer:
        writer.write_table(table)
    assert read(path) == table.to_pylist()


def test_values_that_json_lacks_become_text(tmp_path: Path) -> None:
    row = {
        "day": datetime.date(2026, 11, 25),
        "when": [datetime.datetime(2026, 11, 25, 12)],
        "price": {"net": decimal.Decimal("1.50")},
        "raw": b"abc",
        "image": b"\xff\xd8",
    }
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet") == [
        {
            "day": "2026-11-25",
            "when": ["2026-11-25T12:00:00"],
            "price": {"net": "1.50"},
            "raw": "abc",
            "image": "/9g=",
        }
    ]


def test_labels_are_read_by_the_names_that_the_data_set_gives_them(tmp_path: Path) -> None:
    features = {"label": {"names": ["bad", "good"], "_type": "ClassLabel"}, "text": {}}
    table = pa.table({"text": ["a", "b", "c"], "label": [1, 0, -1]}).replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})}
    )
    pq.write_table(table, tmp_path / "a.parquet")
    assert [row["label"] for row in read(tmp_path / "a.parquet")] == ["good", "bad", -1]


def test_json_in_parquet_by_a_stranger(tmp_path: Path) -> None:
    def write(text: str, **metadata: str) -> None:
        column = pa.ExtensionArray.from_storage(pa.json_(pa.string()), pa.array(["{}", text]))
        table = pa.table({"a": column}).replace_schema_metadata(metadata)
        pq.write_table(table, tmp_path / "a.parquet")

    write('"\\ud800"')
    (bad,) = [item for item in read_rows(str(tmp_path / "a.parquet")) if isinstance(item, BadRow)]
    assert "a.parquet:2: has half of a surrogate pair" in str(bad)
    for text, metadata in (("{", {}), ("[" * 100_000, {}), ("1", {"luthier.nulls": "5"})):
        write(text, **metadata)
        with pytest.raises(UserError, match="not a readable Parquet file"):
            list(read_rows(str(tmp_path / "a.parquet")))
