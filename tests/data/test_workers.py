"""Work in forked processes gives what one process gives, and leaves none behind."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from families import CHAT_FAMILIES, make_tokenizer

from luthier.data import token_cache, workers
from luthier.data.conversation import Conversation, Origin
from luthier.data.split import split_key
from luthier.data.stored import RowFile, StoredRows
from luthier.data.template import TemplateRejects
from luthier.data.tokens import Encoded, Tokenizer
from luthier.data.workers import Ahead, in_workers
from luthier.errors import UserError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux")


@pytest.fixture(autouse=True)
def three_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_cores", lambda: 3)


def children() -> list[str]:
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


def numbers(start: int, end: int) -> tuple[int, list[int]]:
    return os.getpid(), list(range(start, end))


def test_blocks_come_in_order_from_several_processes() -> None:
    done = list(in_workers(numbers, 23, 2))
    assert [n for _, block in done for n in block] == list(range(23))
    processes = {pid for pid, _ in done}
    assert len(processes) == 3
    assert os.getpid() not in processes


@pytest.mark.parametrize("count", [0, 1, 4])
def test_little_work_is_done_here(count: int) -> None:
    done = list(in_workers(numbers, count, 2))
    assert [n for _, block in done for n in block] == list(range(count))
    assert {pid for pid, _ in done} <= {os.getpid()}


def test_users_who_want_no_parallelism_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    assert {pid for pid, _ in in_workers(numbers, 9, 1)} == {os.getpid()}


def test_an_error_in_a_worker_is_raised_here_after_what_came_before_it() -> None:
    def work(start: int, _end: int) -> int:
        if start == 5:
            raise LookupError("row 5")
        return start

    before = children()
    seen = []
    with pytest.raises(LookupError, match="row 5"):
        for each in in_workers(work, 9, 1):
            seen.append(each)
    assert seen == [0, 1, 2, 3, 4]
    assert children() == before


def test_a_killed_worker_is_told() -> None:
    def work(start: int, _end: int) -> int:
        if start == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return start

    with pytest.raises(UserError, match="was killed"):
        list(in_workers(work, 9, 1))


def test_who_stops_taking_blocks_leaves_no_process() -> None:
    before = children()
    blocks = in_workers(lambda start, _end: bytes(2**20), 50, 1)
    next(blocks)
    assert len(children()) == len(before) + 3
    blocks.close()
    assert children() == before


def test_values_are_made_ahead_in_a_process_that_holds_no_file_of_this_one(tmp_path: Path) -> None:
    before = children()

    def values() -> Iterator[tuple[int, list[str]]]:
        for number in range(3):
            (tmp_path / str(number)).touch()
            yield os.getpid(), [each.name for each in Path("/proc/self/fd").iterdir()]
        raise LookupError("no more")

    with (tmp_path / "lock").open("w"):
        ahead = Ahead(values)
        deadline = time.monotonic() + 20
        while not (tmp_path / "0").exists() and time.monotonic() < deadline:
            time.sleep(0.01)  # before anybody asks
        pid, descriptors = next(ahead)
    assert children() == [*before, str(pid)]
    assert len(descriptors) <= 5  # the standard ones, the pipe, and the folder that is listed
    next(ahead), next(ahead)
    with pytest.raises(LookupError, match="no more"):
        next(ahead)
    ahead.close()
    assert children() == before


@pytest.mark.parametrize("name", ["chatml", "gemma", "llama3"])
def test_rows_are_tokenised_as_in_one_process(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Tokenizer(make_tokenizer(CHAT_FAMILIES[name]), "completions")
    file = RowFile(split_key)
    for number in range(40):
        question = {"role": "user", "content": f"how much is {number} and {number * 7}?"}
        turns = (question, {"role": "assistant", "content": f"{number * 8}" * (number % 5 + 1)})
        system = ({"role": "system", "content": "be brief"},) if number % 9 == 4 else ()
        file.append(Conversation(Origin("f", number), system + turns))
    rows = StoredRows(file, range(len(file)))
    monkeypatch.setattr(token_cache, "WORTH", 1)
    monkeypatch.setattr(token_cache, "_BLOCK", 3)

    def told(encoded: list[Encoded]) -> list[object]:
        return [str(e) if isinstance(e, TemplateRejects) else e for e in encoded]

    apart = told(token_cache.encode_all(encoder, rows, keep=False))
    monkeypatch.setattr(workers, "_cores", lambda: 1)
    assert apart == told(token_cache.encode_all(encoder, rows, keep=False))
    assert apart == told(list(encoder.encode_all(rows)))
    assert any(isinstance(each, str) for each in apart) == (name == "gemma")


def test_rows_that_are_still_buffered_are_written_once() -> None:
    file = RowFile(split_key)
    rows = [Conversation(Origin("f", n), text=f"row {n}") for n in range(40)]
    for row in rows[:30]:
        file.append(row)
    first = StoredRows(file, range(30))
    texts = list(in_workers(lambda start, end: [first[n].text for n in range(start, end)], 30, 4))
    assert [text for block in texts for text in block] == [row.text for row in rows[:30]]
    for row in rows[30:]:
        file.append(row)
    assert list(StoredRows(file, range(40))) == rows
