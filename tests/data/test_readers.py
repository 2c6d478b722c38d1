import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from luthier.data.readers import BadRow, read_rows
from luthier.errors import UserError

ROWS = [{"prompt": "a", "completion": "b"}, {"prompt": 'c,\n"d"', "completion": "é"}]


def read(path: Path) -> list[dict[str, object]]:
    items = list(read_rows(str(path)))
    assert not any(isinstance(item, BadRow) for item in items), items
    return [item[1] for item in items if not isinstance(item, BadRow)]


def bad(path: Path) -> list[str]:
    return [str(item) for item in read_rows(str(path)) if isinstance(item, BadRow)]


def test_the_same_rows_from_every_kind_of_file(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, ROWS)), "utf-8")
    (tmp_path / "a.json").write_text(json.dumps(ROWS, indent=1), "utf-8")
    (tmp_path / "a.csv").write_text('prompt,completion\na,b\n"c,\n""d""",é\n', "utf-8")
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    for kind in ("jsonl", "json", "csv", "parquet"):
        assert read(tmp_path / f"a.{kind}") == ROWS, kind


def test_rows_know_their_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "x"}\n\n{"text": "y"}\n')
    items = list(read_rows(str(path)))
    assert [str(item[0]) for item in items if not isinstance(item, BadRow)] == [
        f"{path}:1",
        f"{path}:3",
    ]


def test_a_byte_order_mark_is_no_part_of_the_data(tmp_path: Path) -> None:
    for kind, text in [
        ("jsonl", '{"text": "x"}'),
        ("json", '[{"text": "x"}]'),
        ("csv", "text\nx\n"),
    ]:
        (tmp_path / f"a.{kind}").write_bytes(b"\xef\xbb\xbf" + text.encode())
        assert read(tmp_path / f"a.{kind}") == [{"text": "x"}]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"text": "x"', "not valid JSON"),
        (b"[1, 2]", "not a JSON object"),
        (b'{"text": "\xff"}', "not UTF-8 at byte 10"),
        (b'{"text": "\\ud800"}', "surrogate"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_a_broken_line_is_told_and_hides_no_other(tmp_path: Path, line: bytes, said: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "x"}\n' * 16 + line + b'\n{"text": "y"}\n')
    assert len(list(read_rows(str(path)))) == 18
    (told,) = bad(path)
    assert told.startswith(f"{path}:17: ")
    assert said in told


def test_csv_rows_of_the_wrong_width_are_bad(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("prompt,completion\na,b\nc\nd,e,f\n")
    told = bad(path)
    assert len(told) == 2
    assert "a.csv:3: fewer fields" in told[0]
    assert "a.csv:4: more fields" in told[1]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", b"", "is empty"),
        ("a.jsonl", b"\n \n", "is empty"),
        ("a.csv", b"prompt,completion\n", "is empty"),
        ("a.json", b"[]", "is empty"),
        ("a.json", b'{"text": "x"}', "holds a list"),
        ("a.json", b'{"text": "x"}\n{"text": "y"}', "name it .jsonl"),
        ("a.json", b"\xff\xfe", "not UTF-8"),
        ("a.csv", b'a,b\n"x', "not valid CSV"),
        ("a.csv", b"a,b\n\xff,x\n", "not UTF-8"),
        ("a.parquet", b"PAR1 but not really", "not a readable Parquet file"),
        ("a.xlsx", b"", "data files end in .jsonl, .json"),
    ],
)
def test_an_unreadable_file_says_why(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as error:
        list(read_rows(str(tmp_path / name)))
    assert said in str(error.value)


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no data file at"):
        list(read_rows(str(tmp_path / "none.jsonl")))
    with pytest.raises(UserError, match="is a folder"):
        list(read_rows(str(tmp_path)))
