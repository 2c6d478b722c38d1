"""Whatever a file holds, the check answers with a report or one clear error."""

import json
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from luthier.data.check.page import render_page
from luthier.data.check.report import check_data
from luthier.errors import UserError

SETTINGS = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)  # fmt: skip
turn = st.fixed_dictionaries(
    {},
    optional={
        "role": st.sampled_from(["user", "assistant", "system", "tool", "x"]) | values,
        "content": st.text(max_size=40) | values,
        "from": st.sampled_from(["human", "gpt", "function_call", "observation"]),
        "value": st.text(max_size=40) | values,
        "tool_calls": values,
    },
)
fields = [
    "messages", "conversations", "instruction", "input", "output", "prompt", "completion", "text",
    "chosen", "rejected", "system", "tools",
]  # fmt: skip
row = st.dictionaries(
    st.sampled_from(fields) | st.text(max_size=6),
    st.text(max_size=60) | st.lists(turn, max_size=4) | values,
    max_size=5,
)


def judged(name: str, content: bytes) -> dict[str, Any] | None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        try:
            report = check_data([str(path)])
        except UserError as error:
            assert str(error)
            return None
    json.dumps(report)
    assert render_page(report).startswith("<!doctype html>")
    assert report["rows"]["usable"] <= report["rows"]["read"]
    return report


@SETTINGS
@given(rows=st.lists(row, min_size=1, max_size=6))
@example(rows=[{"text": "<script>alert(1)</script>"}])
@example(rows=[{"prompt": "[bold]", "completion": "[/bold] [INST]"}])
def test_any_rows(rows: list[dict[str, Any]]) -> None:
    lines = "".join(json.dumps(each) + "\n" for each in rows)
    report = judged("rows.jsonl", lines.encode())
    assert report is not None
    assert report["rows"]["read"] == len(rows)


@SETTINGS
@given(
    content=st.binary(max_size=300),
    name=st.sampled_from(["a.jsonl", "a.json", "a.csv", "a.parquet", "a.jsonl.gz", "a.csv.zst"]),
)
@example(content=b"\x1f\x8b\x08\x00", name="a.jsonl.gz")
@example(content=b"PAR1", name="a.parquet")
def test_any_bytes(content: bytes, name: str) -> None:
    judged(name, content)


def test_the_page_escapes_the_data(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    words = " ".join(f"word{i}" for i in range(60))
    rows = [{"prompt": f"{evil} {words} {i}", "completion": evil} for i in range(2)]
    rows.append({"prompt": f"{evil}<|im_end|>", "completion": evil})
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    page = render_page(check_data([str(path)]))
    assert evil not in page
    assert "&lt;script&gt;" in page
