"""Rows and tokens on disk are those in memory."""

import errno
import io
import os
import random
import tempfile
from pathlib import Path

import numpy as np
import pytest
from helpers import random_rows

from luthier.data.blocks import in_blocks
from luthier.data.conversation import Conversation, Origin
from luthier.data.split import chosen, sample, sampled, split, split_key, without_overlap
from luthier.data.stored import RowFile, StoredRows, content_hash, joined
from luthier.data.token_file import Packed, TokenFile, TokenWriter, arrays_of
from luthier.data.tokens import TokenRow, cut
from luthier.errors import UserError


def stored(pieces: list[list[TokenRow]], rows: list[Conversation]) -> list[list[TokenRow]]:
    file = tempfile.TemporaryFile()  # noqa: SIM115
    writer = TokenWriter(file)
    for each in pieces:
        writer.add(Packed.of([each]))
    writer.finish()
    return TokenFile(file).token_rows(rows)


def pieces_of(counts: list[int]) -> tuple[list[list[TokenRow]], list[Conversation]]:
    rows = [Conversation(Origin("f", n), text=f"row {n}") for n in range(len(counts))]
    drawn = iter(random_rows(sum(counts), 3))
    made = [
        [TokenRow(*next(drawn).arrays, row) for _ in range(count)]
        for count, row in zip(counts, rows, strict=True)
    ]
    return made, rows


@pytest.mark.parametrize("pread", [True, False], ids=["pread", "seek"])
def test_token_rows_come_back_as_they_were(pread: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("luthier.data.token_file._SMALL", 0)
    if not pread:
        monkeypatch.delattr(os, "pread", raising=False)
    made, rows = pieces_of([1, 3, 0, 2, 1])
    found = stored(made, rows)
    assert found == made
    assert [[len(row) for row in each] for each in found] == [[len(r) for r in e] for e in made]
    assert found[1][2].conversation is rows[1]
    assert found[1][0].source == found[1][2].source != found[3][0].source
    for short in (3, 7, 30):
        cut_in_memory = [cut(row, short) for each in made for row in each]
        assert [cut(row, short) for each in found for row in each] == cut_in_memory


def test_tokens_of_any_vocabulary() -> None:
    row = Conversation(Origin("f", 1), text="x")
    made = [[TokenRow([0, 2**31 - 1, 0, 5], [False, True, True, False], row)]]
    assert stored(made, [row]) == made


def test_blocks_hold_all_tokens_wherever_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("luthier.data.blocks._TOKENS", 40)
    monkeypatch.setattr("luthier.data.token_file._SMALL", 0)
    made, rows = pieces_of([2] * 30)
    memory = [row for each in made for row in each]
    disk = [row for each in stored(made, rows) for row in each]
    mixed = [*disk[:7], memory[7], *disk[8:20], *disk[22:30], disk[29], disk[28], *memory[50:]]
    for some_rows in (memory, disk, mixed, disk[::-1], []):
        seen: list[list[int]] = []
        for block in in_blocks(some_rows):
            assert block.first == len(seen)
            ends = [*block.starts[1:].tolist(), len(block.ids)]
            some = block.any(block.mask)
            begins = block.begins([some_rows[block.first].input_ids[0]])
            for number, (start, end) in enumerate(zip(block.starts.tolist(), ends, strict=True)):
                row = some_rows[len(seen)]
                seen.append(block.ids[start:end].tolist())
                assert row.supervised == block.mask[start:end].tolist()
                assert some[number] == any(row.supervised)
                assert begins[number] == (row.ids[0] == some_rows[block.first].ids[0])
        assert seen == [row.input_ids for row in some_rows]
    ids, mask = arrays_of(mixed)
    assert ids.tolist() == [token for row in mixed for token in row.input_ids]
    assert mask.tolist() == [counts for row in mixed for counts in row.supervised]


@pytest.mark.parametrize("keep", [0, 10, -1, -33])
def test_a_file_that_is_not_whole_is_told(keep: int, tmp_path: Path) -> None:
    made, _ = pieces_of([1, 1])
    buffer = io.BytesIO()
    writer = TokenWriter(buffer)
    for each in made:
        writer.add(Packed.of([each]))
    writer.finish()
    (tmp_path / "x").write_bytes(buffer.getvalue()[:keep])
    with pytest.raises(ValueError, match=r"short|whole"):
        TokenFile(tmp_path / "x")


def conversations(count: int) -> list[Conversation]:
    draw = random.Random(1)
    made = []
    for number in range(count):
        origin = Origin(f"file {number // 40}", number % 40 + 1)
        question = {"role": "user", "content": f"é {draw.randrange(count // 2)}\u2028?"}
        answer = {"role": "assistant", "content": "a", "unused": {"n": [1, None]}}
        made.append(
            Conversation(origin, text="x" * number)
            if number % 7 == 3
            else Conversation(origin, (question, answer), extra={"id": number, "x": 0.5})
        )
    return made


def on_disk(rows: list[Conversation]) -> StoredRows:
    file = RowFile(split_key)
    for row in rows:
        file.append(row)
    return StoredRows(file, range(len(file)))


def test_rows_on_disk_are_those_in_memory() -> None:
    rows = conversations(100)
    disk = on_disk(rows)
    assert list(disk) == rows
    assert list(disk[20:90:3]) == rows[20:90:3]
    assert disk[-1] == rows[-1]
    assert [disk.file.origin(n) for n in range(100)] == [row.origin for row in rows]
    assert [disk.file.spoken(n) for n in range(100)] == [bool(row.messages) for row in rows]
    assert list(disk.content_hashes()) == [content_hash(row) for row in rows]
    disk.file.append(rows[5])  # after reading
    assert disk.file.line(100) == disk.file.line(5)
    assert list(disk) == rows


def test_splits_of_rows_on_disk_are_those_in_memory() -> None:
    rows = conversations(200)
    disk = on_disk(rows)
    for seed in range(3):
        for found, expected in (
            (split(disk, 0.2, seed), split(rows, 0.2, seed)),
            (without_overlap(disk[:150], disk[150:]), without_overlap(rows[:150], rows[150:])),
            ([chosen(disk, sampled(200, 40, seed))], [sample(rows, 40, seed)]),
            ([joined(disk[:9], disk[3:5])], [joined(rows[:9], rows[3:5])]),
        ):
            assert all(isinstance(each, StoredRows) for each in found)
            assert [list(each) for each in found] == [list(each) for each in expected]


def test_equal_words_of_another_place_have_the_same_content() -> None:
    first, second = conversations(40)[:2]
    moved = Conversation(Origin("g", 9), first.messages, extra={"other": 1})
    assert content_hash(moved) == content_hash(first) != content_hash(second)
    assert np.array_equal(on_disk([first]).places, [0])


def test_a_full_disk_is_said_in_a_sentence() -> None:
    class Full(io.BytesIO):
        def write(self, _: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    file = RowFile(split_key, Full())
    with pytest.raises(UserError, match="No space left on device; make room there"):
        file.append(conversations(2)[0])
