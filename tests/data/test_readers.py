import contextlib
import gzip
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from luthier.data.readers import BadRow, read_rows
from luthier.errors import UserError

# More than a pipe or a buffer holds, and not to be squeezed into a few bytes.
LONG = "".join(f'{{"text": "{n * 7919}"}}\n' for n in range(20_000)).encode()
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
        ("a.json", b'{"text": "x"}', "must hold a list"),
        ("a.json", b'{"text": "x"}\n{"text": "y"}', "name it .jsonl"),
        ("a.json", b"\xff\xfe", "not UTF-8"),
        ("a.csv", b'a,b\n"x', "not valid CSV"),
        ("a.csv", b"a,b\n\xff,x\n", "not UTF-8"),
        ("a.parquet", b"PAR1 but not really", "not a readable Parquet file"),
        ("a.xlsx", b"", "data files end in .jsonl, .json"),
        ("a.parquet.gz", b"", "data files end in .jsonl, .json"),
        ("a.jsonl.gz", b'{"text": "x"}', "is a damaged .gz archive"),
        (
            "a.jsonl.gz",
            gzip.compress(b'{"text": "x"}\n' * 9, mtime=0)[:-10],
            "is a damaged .gz archive",
        ),
        ("a.jsonl.zst", b'{"text": "x"}', "is a damaged .zst archive"),
        ("a.jsonl.zst", zstandard.compress(LONG)[:-10], "is a damaged .zst archive"),
        ("a.json.zst", zstandard.compress(b"[]")[:-1], "is a damaged .zst archive"),
        ("a.csv.gz", gzip.compress(b"prompt\n" * 9, mtime=0)[:-10], "is a damaged .gz archive"),
        ("a.jsonl.zst", b"", "is empty"),
        ("a.jsonl.gz", b"", "is empty"),
    ],
)
def test_an_unreadable_file_says_why(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as error:
        list(read_rows(str(tmp_path / name)))
    assert said in str(error.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no data file at"):
        list(read_rows(str(tmp_path / "none.jsonl")))


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress])
@pytest.mark.parametrize("kind", ["jsonl", "json", "csv"])
def test_the_same_rows_compressed(
    tmp_path: Path, kind: str, pack: Callable[[bytes], bytes]
) -> None:
    texts = {
        "jsonl": "\n".join(map(json.dumps, ROWS)),
        "json": json.dumps(ROWS),
        "csv": 'prompt,completion\na,b\n"c,\n""d""",é\n',
    }
    path = tmp_path / f"a.{kind}.{'gz' if pack is gzip.compress else 'zst'}"
    path.write_bytes(pack(texts[kind].encode()))
    assert read(path) == ROWS


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress])
def test_archives_of_several_parts_are_read_whole(
    tmp_path: Path, pack: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / f"a.jsonl.{'gz' if pack is gzip.compress else 'zst'}"
    path.write_bytes(pack(LONG) + pack(b'{"text": "y"}\n'))
    rows = read(path)
    assert len(rows) == 20_001
    assert rows[-1] == {"text": "y"}


def test_reading_holds_one_row_at_a_time(tmp_path: Path) -> None:
    """A pipe that never ends gives its first rows: nothing waits for the end of the file."""
    path = tmp_path / "endless.jsonl"
    os.mkfifo(path)

    def write() -> None:
        with contextlib.suppress(BrokenPipeError):
            path.write_bytes(LONG)

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    rows = read_rows(str(path))
    for number in range(1, 4):
        item = next(rows)
        assert not isinstance(item, BadRow)
        assert item[0].line == number
    assert writer.is_alive()  # it waits for us to read on
    rows.close()  # type: ignore[attr-defined]
