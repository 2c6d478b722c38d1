"""Documents to passages: nothing lost, every place right."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from families import CHAT_FAMILIES, make_tokenizer

from luthier.errors import UserError
from luthier.retrieve.documents import Document, hash_documents, read_documents
from luthier.retrieve.passages import Passage, cut_passages

GUIDE = """\
# The ferry

The ferry runs daily. It leaves at noon. It carries forty cars and has a crew of nine people.

## Tickets

A ticket costs four crowns. Children ride free. Dogs pay half. Bicycles pay a quarter of it.

Buy it on board, in coins. Notes are refused. Cards are refused too, since the machine broke.
"""


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return make_tokenizer(CHAT_FAMILIES["chatml"])


def cut(text: str, tokenizer: Any, size: int, overlap: int) -> list[Passage]:
    return list(cut_passages(Document("a.md", 1, text), tokenizer, size, overlap))


@pytest.mark.parametrize("size", [16, 23, 40, 64, 5000])
@pytest.mark.parametrize("overlap", [0, 8])
def test_every_word_is_in_a_passage_that_says_where(
    size: int, overlap: int, tokenizer: Any
) -> None:
    found = cut(GUIDE, tokenizer, size, overlap)
    lines = GUIDE.splitlines()
    position = 0
    for passage in found:
        assert len(tokenizer(passage.text, add_special_tokens=False).input_ids) <= size + 2
        at = GUIDE.index(passage.text, max(0, position - 8 * (overlap + 1)))
        skipped = GUIDE[position:at]
        assert not skipped.strip()  # nothing between two passages but white space
        position = max(position, at + len(passage.text))
        shown = "\n".join(lines[passage.first_line - 1 : passage.last_line])
        assert passage.text in shown
        assert passage.text.splitlines()[0] in lines[passage.first_line - 1]
        assert passage.text.splitlines()[-1] in lines[passage.last_line - 1]
    assert not GUIDE[position:].strip()
    if size == 5000:
        assert [p.text for p in found] == [GUIDE.strip()]


def test_passages_end_at_headings_and_sentences_and_carry_their_heading(tokenizer: Any) -> None:
    size = len(tokenizer(GUIDE[: GUIDE.index("## ") + 60]).input_ids)
    first, second, *_ = cut(GUIDE, tokenizer, size, 4)
    assert first.text.endswith("nine people.")
    assert second.text.startswith("## Tickets")
    assert second.title == ""  # it shows the heading itself
    pieces = cut(GUIDE, tokenizer, 120, 10)
    assert all(piece.text.endswith(".") for piece in pieces)
    assert pieces[-1].title == "Tickets"


def test_overlap_repeats_the_end_of_the_passage_before(tokenizer: Any) -> None:
    text = " ".join(f"Sentence {n} says it." for n in range(40))
    plain, overlapping = cut(text, tokenizer, 60, 0), cut(text, tokenizer, 60, 20)
    assert len(overlapping) > len(plain)
    for before, after in pairwise(plain):
        assert after.text.split(".")[0] not in before.text
    for before, after in pairwise(overlapping):
        assert after.text.split(".")[0] + "." in before.text


def test_a_text_without_boundaries_is_cut_all_the_same(tokenizer: Any) -> None:
    text = "x" * 400
    assert "".join(p.text for p in cut(text, tokenizer, 16, 0)) == text


def read(folder: Path) -> list[Document]:
    return list(read_documents(folder))


def test_reading_a_folder(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "x.md").write_text("hidden")
    (tmp_path / "b" / "two.TXT").write_bytes(b"\xef\xbb\xbftwo")
    (tmp_path / "one.md").write_text("one")
    (tmp_path / "rows.jsonl").write_text('{"text": "r1", "title": "T"}\n\n{"text": "r2"}\n')
    (tmp_path / "left.pdf").write_text("no")
    assert read(tmp_path) == [
        Document("b/two.TXT", 1, "two"),
        Document("one.md", 1, "one"),
        Document("rows.jsonl", 1, "r1", "T"),
        Document("rows.jsonl", 3, "r2"),
    ]
    assert set(hash_documents(tmp_path)) == {"b/two.TXT", "one.md", "rows.jsonl"}


def bad_folders() -> Iterator[tuple[dict[str, bytes], str]]:
    yield {}, "has no documents"
    yield {"a.pdf": b"x"}, "has no documents"
    yield {"a.md": b"ab\xff"}, "a.md is not UTF-8 at byte 2"
    yield {"a.jsonl": b'{"body": "x"}\n'}, "a.jsonl:1: a document is a row with 'text'"
    yield {"a.jsonl": b'{"text": "x"}\n{"text": 3}\n'}, "a.jsonl:2: a document is a row"
    yield {"a.jsonl": b"{\n"}, "a.jsonl:1: not valid JSON"


@pytest.mark.parametrize(("files", "message"), list(bad_folders()))
def test_what_cannot_be_read_says_where(
    files: dict[str, bytes], message: str, tmp_path: Path
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read(tmp_path)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give a folder of documents"):
        read(tmp_path / "none")
