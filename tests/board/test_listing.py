"""The list of runs, sorted and filtered for the browser."""

from dataclasses import replace
from pathlib import Path

import pytest

from luthier.board.folders import Folders
from luthier.board.index import Index, Summary
from luthier.board.listing import MOST, as_row, chosen, page_of

ROWS = [
    Summary(
        "a", "finished", "better", "kept", "llama", "lora", loss=0.5, changed=4, tags=("good",)
    ),
    Summary("b", "failed", model="qwen", method="full", loss=2.0, changed=3),
    Summary("c", "finished", "no evidence", model="qwen", method="lora", loss=1.0, changed=2),
    Summary("d", "running", changed=1),
]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", "abcd"),
        ("QWEN", "bc"),
        ("qwen lora", "c"),
        ("good", "a"),
        ("not enough", "c"),
        ("loss<1.5", "ac"),
        ("loss>.5 qwen", "bc"),
        ("loss<1e0", "a"),
        ("loss<1.2.3", ""),
        ("nothing<3", ""),
    ],
)
def test_all_words_have_to_fit(text: str, names: str) -> None:
    assert "".join(row.name for row in chosen(ROWS, text)) == names


def test_what_is_unknown_comes_last_in_either_order() -> None:
    assert "".join(row.name for row in chosen(ROWS, "", "loss")) == "acbd"
    assert "".join(row.name for row in chosen(ROWS, "", "loss", descending=True)) == "bcad"
    assert "".join(row.name for row in chosen(ROWS, "", "model")) == "abcd"
    assert "".join(row.name for row in chosen(ROWS, "", "no such column")) == "abcd"


def test_a_row_holds_what_json_can() -> None:
    row = as_row(replace(ROWS[0], loss=float("nan"), eval_loss=float("inf")))
    assert row == {
        "name": "a",
        "state": "finished",
        "verdict": "better",
        "forgetting": "kept",
        "model": "llama",
        "method": "lora",
        "changed": 4,
        "tags": ["good"],
    }


def test_a_browser_gets_a_page_of_them(tmp_path: Path) -> None:
    for number in range(MOST + 7):
        root = tmp_path / f"run-{number:03}"
        root.mkdir()
        (root / "recipe.yaml").write_text("model: {source: m}\ndata: {train: d}\n")
    index = Index(Folders(tmp_path))
    index.read_all()
    first = page_of(index, sort="name")
    assert first["count"] == MOST + 7 and len(first["rows"]) == MOST
    assert len(page_of(index, end=10_000)["rows"]) == MOST
    rest = page_of(index, start=MOST, end=2 * MOST, sort="name")["rows"]
    assert [row["name"] for row in rest] == [f"run-{n:03}" for n in range(MOST, MOST + 7)]
    assert page_of(index, start=-5, end=-1)["rows"] == []
