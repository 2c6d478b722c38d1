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
from books import ods, xlsx

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
    assert "a.csv:3: has fewer fields" in told[0]
    assert "a.csv:4: has more fields" in told[1]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", b"", "is empty"),
        ("a.jsonl", b"\n \n", "is empty"),
        ("a.csv", b"prompt,completion\n", "is empty"),
        ("a.json", b"[]", "is empty"),
        ("a.json", b'[{"text": "x"}{"text": "y"}]', "line 1, column 15: expected ',' or ']'"),
        ("a.jsonl", b'[{"text": "x"},\n', "line 2, column 1: Expecting value"),
        ("a.json", b'[\n{"text": "x"}\n', "the file ends inside its list"),
        ("a.json", b'[\n{"text": "x"}] []', "line 2, column 16: something follows the end"),
        (
            "a.json",
            b'{"train": [{"a": 1}], "test": [{"a": 2}]}',
            "several lists of rows (train, test)",
        ),
        ("a.json", b"[\xff]", "not UTF-8 at byte 1"),
        ("a.json", b'{\0"\0', "may be UTF-16 without a byte order mark"),
        ("a.json", b'\xff\xfe{\0"', "is not the UTF-16 that its byte order mark says"),
        ("a.csv", b"a,b;c\n1,2;3\n", "separated by a comma or a semicolon"),
        ("a.csv", b"a, a \n1,2\n", "two columns named 'a'"),
        ("a.tsv", b'a\tb\n"x" y\tz\n', "line 2: not valid CSV"),
        ("a.arrow", b"ARROW1 but not really", "not a readable Arrow file"),
        ("a.xlsx", b"no zip", "not a readable spreadsheet"),
        ("a.csv", b'a,b\n"x', "not valid CSV"),
        ("a.csv", b"a,b\n\xff,x\n", "not UTF-8"),
        ("a.parquet", b"PAR1 but not really", "not a readable Parquet file"),
        ("a.docx", b"", "data files end in .jsonl, .json"),
        ("a.xlsx.gz", b"", "data files end in .jsonl, .json"),
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


ONE, TWO = '{"text": "x"}', '{"text": "y"}'


@pytest.mark.parametrize("kind", ["json", "jsonl", "json.gz"])
@pytest.mark.parametrize(
    "text",
    [
        f"{ONE}\n{TWO}\n",
        f"\n{ONE},\n{TWO},\n",
        f"[{ONE}, {TWO}]",
        f"[{ONE},\n{TWO},\n]\n",
        f"[\n  {ONE},\n  {TWO}\n]",
        f'{{"data": [{ONE}, {TWO}]}}',
        f'{{\n "version": 1,\n "rows": [\n{ONE},\n{TWO}\n]\n}}',
        '{\n  "text": "x"\n}\n{\n  "text": "y"\n}\n',
        '{"text":\n"x"},\n{"text":\n"y"},\n',
    ],
    ids=[
        *("lines", "lines with commas", "list in a line", "comma at the end", "list"),
        *("data", "rows among others", "pretty-printed", "pretty-printed with commas"),
    ],
)
def test_json_in_the_shapes_that_people_have(tmp_path: Path, text: str, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    path.write_bytes(gzip.compress(text.encode()) if kind.endswith("gz") else text.encode())
    assert read(path) == [{"text": "x"}, {"text": "y"}]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (f"{ONE[:-1]}\n{TWO}\n", ["a.json:1: not valid JSON: Expecting ',' delimiter"]),
        (f"{ONE}{ONE}\n{TWO}\n", ["a.json:1: not valid JSON: Extra data"]),
        (f"{ONE},,\n{TWO}\n", ["a.json:1: not valid JSON: Extra data"]),
        (f'{{"text": "x",}}\n{TWO}\n', ["a.json:1: not valid JSON"]),
        (f'{{\n"text": x\n}}\n{TWO}\n', ["a.json:1: not valid JSON: line 2, column 9"]),
        (f"[[1]]\n{TWO}\n", ["a.json:1: not a JSON object but a list"]),
    ],
)
def test_what_is_broken_in_it_is_told_and_the_rest_is_read(
    tmp_path: Path, text: str, told: list[str]
) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    items = list(read_rows(str(path)))
    said = [str(item) for item in items if isinstance(item, BadRow)]
    assert len(said) == len(told)
    assert all(part in text for part, text in zip(told, said, strict=True))
    assert [item[1] for item in items if not isinstance(item, BadRow)][-1] == {"text": "y"}


def test_an_object_with_a_list_of_turns_is_a_row(tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": "x"}]}
    (tmp_path / "a.json").write_text(json.dumps(row, indent=1))
    assert read(tmp_path / "a.json") == [row]


def test_pretty_printed_rows_know_their_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{\n"text": "x"\n}\n\n{\n"text": "y"\n}')
    origins = [item[0] for item in read_rows(str(tmp_path / "a.jsonl")) if isinstance(item, tuple)]
    assert [origin.line for origin in origins] == [1, 5]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32", "utf-8-sig"])
@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("jsonl", '{"text": "naïve"}\n{"text": "日本"}\n'),
        ("json", '[{"text": "naïve"}, {"text": "日本"}]'),
        ("csv", "text\nnaïve\n日本\n"),
    ],
)
def test_a_byte_order_mark_tells_the_encoding(
    tmp_path: Path, kind: str, text: str, encoding: str
) -> None:
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    (tmp_path / f"a.{kind}").write_bytes((mark + text).encode(encoding))
    assert read(tmp_path / f"a.{kind}") == [{"text": "naïve"}, {"text": "日本"}]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", ' prompt ,completion\n"x, y",a;b\n'),
        ("a.csv", 'prompt;completion\r\nx, y;"a;b"\r\n'),
        ("a.csv", "prompt\tcompletion\nx, y\ta;b\n"),
        ("a.csv", "sep=|\nprompt|completion\nx, y|a;b\n"),
        ("a.csv", 'prompt;completion;\nx, y;"a;b";\n'),
        ("a.tsv", "prompt\tcompletion\nx, y\ta;b\n"),
    ],
)
def test_tables_with_the_separators_that_people_have(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_bytes(text.encode())
    assert read(tmp_path / name) == [{"prompt": "x, y", "completion": "a;b"}]


def test_a_column_without_a_name_is_kept(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(",text\n0,x\n")
    assert read(tmp_path / "a.csv") == [{"column 1": "0", "text": "x"}]


@pytest.mark.parametrize("write", [xlsx, ods])
def test_spreadsheets(tmp_path: Path, write: Callable[..., Path]) -> None:
    sheet = [[" prompt ", "completion"], ["x,\ny", "4"], ["", ""], ["é<", "b"]]
    path = write(tmp_path / f"a.{write.__name__}", {"Rows": sheet, "Empty": []})
    items = [item for item in read_rows(str(path)) if isinstance(item, tuple)]
    assert [item[1] for item in items] == [
        {"prompt": "x,\ny", "completion": "4"},
        {"prompt": "é<", "completion": "b"},
    ]
    assert [item[0].line for item in items] == [2, 4]
    write(path, {"A": sheet, "B": sheet})
    with pytest.raises(UserError, match=r"has rows in several sheets \(A, B\); save the one"):
        list(read_rows(str(path)))


def test_cells_of_a_spreadsheet_are_text_as_it_shows_them(tmp_path: Path) -> None:
    path = xlsx(tmp_path / "a.xlsx", {"S": [["a", "b", "c"], [4, 4.5, True]]})
    assert read(path) == [{"a": "4", "b": "4.5", "c": "TRUE"}]


def test_a_spreadsheet_of_too_many_cells_is_refused(tmp_path: Path) -> None:
    cell = '<row r="{0}"><c r="{1}{0}"><v>1</v></c></row>'
    far = cell.format(1, "A") + cell.format(1048576, "XFD")
    path = xlsx(tmp_path / "a.xlsx", {"S": far})
    with pytest.raises(UserError, match="1,048,576 rows and 16,384 columns, too large"):
        list(read_rows(str(path)))
    everywhere = (
        '<table:table-row table:number-rows-repeated="1048576"><table:table-cell '
        'table:number-columns-repeated="16384" office:value-type="string"><text:p>x</text:p>'
        "</table:table-cell></table:table-row>"
    )
    with pytest.raises(UserError, match="not a readable spreadsheet: Cell limit exceeded"):
        list(read_rows(str(ods(tmp_path / "a.ods", {"S": everywhere}))))
