import json
from pathlib import Path
from typing import Any

import pytest
from helpers import write_rows

from luthier.data.check.report import check_data
from luthier.data.fix import REMEDIES, fix_data
from luthier.data.mix import split_data
from luthier.errors import UserError


def row(prompt: str, answer: str) -> dict[str, str]:
    return {"prompt": prompt, "completion": answer}


def mended(tmp_path: Path, rows: list[dict[str, Any]], *remedies: str) -> list[dict[str, Any]]:
    source, out = write_rows(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    before = source.read_bytes()
    fixed = fix_data([str(source)], out, remedies)
    assert source.read_bytes() == before
    lines = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    assert (fixed.read, fixed.written) == (len(rows), len(lines))
    return lines


def changes(tmp_path: Path) -> list[dict[str, Any]]:
    text = (tmp_path / "out.jsonl.changes.jsonl").read_text("utf-8")
    return [json.loads(line) for line in text.splitlines()]


CASES = {
    "fix-mojibake": ([row("a", "cafÃ©")], [row("a", "café")]),
    "normalise-unicode": ([row("a", "cafe\u0301")], [row("a", "café")]),
    "strip-control-characters": ([row("a\x07\tb", "c\x00\n")], [row("a\tb", "c\n")]),
    "strip-whitespace": ([row(" a", "b\n c\n")], [row("a", "b\n c")]),
    "redact": (
        [row("mail ann@firma.de", "or call (212) 555-0187 now")],
        [row("mail [EMAIL]", "or call [PHONE] now")],
    ),
    "drop-empty": ([row("a", " "), row("", "b"), row("c", "d")], [row("c", "d")]),
    "drop-exact-duplicates": (
        [row("a", "b"), row("a ", "b"), row("A", "b"), row("a", "c")],
        [row("a", "b"), row("A", "b"), row("a", "c")],
    ),
    "keep-first-of-conflicts": (
        [row("a", "b"), row("a", "c"), row("A", "c"), row("a", "b")],
        [row("a", "b"), row("A", "c"), row("a", "b")],
    ),
    "drop-unreadable": ([{"x": "y"}, row("a", "b")], [row("a", "b")]),
}


def test_every_remedy_has_a_case() -> None:
    assert set(CASES) == set(REMEDIES)


@pytest.mark.parametrize("remedy", CASES)
def test_remedy(remedy: str, tmp_path: Path) -> None:
    rows, expected = CASES[remedy]
    assert mended(tmp_path, rows, remedy) == expected
    log = changes(tmp_path)
    assert {line["remedy"] for line in log} == {remedy}
    assert all(line["row"].startswith(str(tmp_path / "in.jsonl")) for line in log)


@pytest.mark.parametrize("remedy", [name for name in CASES if name != "drop-unreadable"])
def test_what_was_not_asked_for_is_left_alone(remedy: str, tmp_path: Path) -> None:
    rows = CASES[remedy][0]
    other = "fix-mojibake" if remedy != "fix-mojibake" else "redact"
    assert mended(tmp_path, rows, other) == rows
    assert changes(tmp_path) == []


def test_other_fields_and_nested_texts_stay(tmp_path: Path) -> None:
    rows = [
        {
            "messages": [
                {"role": "user", "content": "ann@firma.de"},
                {"role": "assistant", "content": "b"},
            ],
            "id": 7,
            "tags": ["x", None],
        }
    ]
    (line,) = mended(tmp_path, rows, "redact")
    assert line == {
        **rows[0],
        "messages": [{"role": "user", "content": "[EMAIL]"}, rows[0]["messages"][1]],
    }
    (change,) = changes(tmp_path)
    assert change["field"] == "messages[0].content"


def test_the_log_does_not_keep_what_is_redacted(tmp_path: Path) -> None:
    mended(tmp_path, CASES["redact"][0], "redact")
    text = (tmp_path / "out.jsonl.changes.jsonl").read_text()
    assert "ann@firma" not in text
    assert "0187" not in text
    assert "email" in text


def test_the_check_finds_nothing_more_of_what_was_mended(tmp_path: Path) -> None:
    rows = [each for rows, _ in CASES.values() for each in rows]
    mended(tmp_path, rows, *REMEDIES)
    left = {f["id"] for f in check_data([str(tmp_path / "out.jsonl")])["findings"]}
    assert not left & {
        "unknown_format", "empty_answer", "empty_prompt", "exact_duplicates", "mojibake",
        "conflicting_answers", "control_characters", "personal_data", "edge_whitespace",
    }  # fmt: skip


def test_wrong_requests(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", [row("a", "b"), {"x": "y"}])
    out = tmp_path / "out.jsonl"
    with pytest.raises(UserError, match="unknown remedy 'redakt'"):
        fix_data([str(source)], out, ["redakt"])
    with pytest.raises(UserError, match="add the remedy drop-unreadable"):
        fix_data([str(source)], out, ["redact"])
    with pytest.raises(UserError, match="exists; choose another"):
        fix_data([str(source)], source, ["redact"])
    with pytest.raises(UserError, match=r"written as \.jsonl"):
        fix_data([str(source)], tmp_path / "out.csv", ["redact"])
    assert [p.name for p in tmp_path.iterdir()] == ["in.jsonl"]


def test_rows_of_any_names_are_fixed_and_split(tmp_path: Path) -> None:
    rows = [{"frage": f"q{n // 2}", "antwort": "a"} for n in range(8)]
    source, out = write_rows(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    columns = {"prompt": "frage", "completion": "antwort"}
    fixed = fix_data([str(source)], out, ["drop-exact-duplicates"], columns=columns)
    assert (fixed.read, fixed.written) == (8, 4)
    assert [json.loads(line) for line in out.read_text().splitlines()] == rows[::2]
    assert split_data([str(source)], tmp_path / "parts", 0.25, 1, columns=columns) == (6, 2)
