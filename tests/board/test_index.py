"""The list of runs, and the files that grow."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import luthier
from luthier.board import index as board_index
from luthier.board.folders import Folders
from luthier.board.following import Followed, last_lines
from luthier.board.index import Index, read_tags, state_of, write_tags
from luthier.files import write_json
from luthier.recipe import Recipe
from luthier.records import MetricsLine
from luthier.run import Run

EVALUATED = Path(__file__).parents[1] / "run-0.1"


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call looks at the folder."""
    monkeypatch.setattr(board_index, "_OFTEN", 0.0)
    monkeypatch.setattr(board_index, "_REST", 0.0)


def make_run(folders: Folders, name: str, steps: int = 3, **files: object) -> Run:
    run = Run(folders.runs / name)
    run.root.mkdir(parents=True)
    run.recipe_path.write_text("model: {source: m}\ndata: {train: d}\n")
    lines = [
        {"step": n, "epoch": 0.1, "loss": 1 / n, "memory_bytes": 1 << 30, "seconds": n}
        for n in range(1, steps + 1)
    ]
    run.metrics_path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for file, value in files.items():
        (run.root / file.replace("__", ".")).write_text(json.dumps(value) + "\n")
    return run


def test_the_state_of_a_run_is_read_from_its_files(tmp_path: Path) -> None:
    folders = Folders(tmp_path)
    stopped = {"event": "stopped", "reason": "r", "interrupted": True}
    cases = {
        "killed": {},
        "asked": {"events__jsonl": stopped},
        "broken": {"events__jsonl": {**stopped, "interrupted": False}},
        "done": {"measured__json": {"steps": 3, "best_eval_loss": 0.5}},
        "odd": {"measured__json": ["not a record"], "plan__json": 3},
    }
    runs = {name: make_run(folders, name, **files) for name, files in cases.items()}
    states = {name: state_of(run) for name, run in runs.items()}
    assert states == {
        "killed": "stopped",
        "asked": "stopped",
        "broken": "failed",
        "done": "finished",
        "odd": "finished",
    }
    with runs["killed"].locked():
        assert state_of(runs["killed"]) == "running"
    rows = {row.name: row for row in Index(folders).rows()}
    assert rows["done"].eval_loss == 0.5
    assert rows["killed"].step == 3 and rows["killed"].loss == 1 / 3


def test_only_what_changed_is_read_again(tmp_path: Path) -> None:
    folders = Folders(tmp_path)
    for number in range(5):
        make_run(folders, f"run-{number}")
    read: list[str] = []
    original = board_index.summarise

    def counted(run: Run, signature: object) -> object:
        read.append(run.root.name)
        return original(run, signature)  # type: ignore[arg-type]

    board_index.summarise = counted  # type: ignore[assignment]
    try:
        index = Index(folders)
        assert len(index.rows()) == 5
        assert index.complete
        read.clear()
        index.rows()
        assert read == []
        with Run(folders.runs / "run-3").metrics_path.open("a") as file:
            file.write('{"step": 9, "epoch": 1, "loss": 0.1, "memory_bytes": 1, "seconds": 1}\n')
        assert {row.name: row.step for row in index.rows()}["run-3"] == 9
        assert read == ["run-3"]
        # Without time, runs are listed by name, and read at the next call.
        late = Index(folders)
        assert {row.state for row in late.rows(seconds=0)} == {"…"}
        assert not late.complete
        assert {row.state for row in late.rows()} == {"stopped"}
    finally:
        board_index.summarise = original


def test_finished_runs_are_known_to_the_next_board(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = Folders(tmp_path)
    for name in ("a", "b"):
        make_run(folders, name, measured__json={"steps": 3, "best_eval_loss": 0.5})
    make_run(folders, "stopped")
    monkeypatch.setattr(board_index, "_WORTH_KEEPING", 1)
    before = Index(folders).rows()
    read: list[str] = []
    original = board_index.summarise

    def counted(run: Run, signature: object) -> object:
        read.append(run.root.name)
        return original(run, signature)  # type: ignore[arg-type]

    monkeypatch.setattr(board_index, "summarise", counted)
    index = Index(folders)
    assert index.rows() == before
    assert read == ["stopped"]
    # A record is written beside its place and renamed, which changes the folder.
    read.clear()
    write_json(Run(tmp_path / "a").measured_path, {"steps": 9})
    assert {row.name: row.steps for row in index.rows()}["a"] == 9
    assert read == ["a"]
    # An evaluation of a finished run is work on it, though none of its files changed yet.
    Run(tmp_path / "b").note_worker(os.getpid())
    assert {row.name: row.state for row in index.rows()}["b"] == "running"
    Run(tmp_path / "b").worker_path.unlink()
    assert {row.name: row.state for row in index.rows()}["b"] == "finished"
    # What cannot be read is read again from the runs.
    folders.index.write_text('{"version": "' + luthier.__version__ + '", "runs": {"a": 3}}')
    assert {row.name: row.steps for row in Index(folders).rows()}["a"] == 9


def test_tags_are_kept_beside_the_runs(tmp_path: Path) -> None:
    folders = Folders(tmp_path)
    make_run(folders, "a")
    write_tags(folders, {"a": ("good", "<b>"), "gone": ()})
    assert read_tags(folders) == {"a": ("good", "<b>")}
    assert Index(folders).rows()[0].tags == ("good", "<b>")


def test_a_growing_file_is_read_line_by_line_and_again_when_it_was_rewritten(
    tmp_path: Path,
) -> None:
    path = tmp_path / "metrics.jsonl"
    followed = Followed(MetricsLine, path)
    assert not followed.grew()

    def line(step: int) -> str:
        return json.dumps({"step": step, "epoch": 0, "memory_bytes": 1, "seconds": 1}) + "\n"

    path.write_text(line(1) + line(2)[:10])
    assert followed.grew()
    assert [x.step for x in followed.records] == [1]
    assert not followed.grew()
    path.write_text(line(1) + line(2) + "damaged\n" + line(3))
    assert followed.grew()
    assert [x.step for x in followed.records] == [1, 2, 3]
    assert followed.damaged == 1
    # A resumed run rewrites the file by a rename, shorter or not.
    other = tmp_path / "other"
    other.write_text("".join(line(step) for step in (1, 2, 7, 8, 9, 10)))
    other.replace(path)
    assert followed.grew()
    assert [x.step for x in followed.records] == [1, 2, 7, 8, 9, 10]
    assert followed.damaged == 0
    path.write_text("")
    assert followed.grew()
    assert followed.records == []


def test_the_end_of_a_file_is_read_alone(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    assert last_lines(path) == []
    path.write_text("first\n" + "x" * 5000 + "\nlast\nhalf")
    assert last_lines(path, 20) == [b"last"]
    assert last_lines(path, 1 << 16)[0] == b"first"


def test_a_run_that_trains_knows_its_process(
    make_recipe: Callable[..., Recipe], train: Callable[..., Run]
) -> None:
    run = train(make_recipe())
    assert run.worker() is None
    assert not run.worker_path.exists()
    run.worker_path.write_text('{"pid": 1, "started": 0}')  # another process got the number
    assert run.worker() is None
    run.worker_path.write_text("damaged")
    assert run.worker() is None
    assert state_of(run) == "finished"


def test_the_list_loads_no_models_library() -> None:
    """It would be the first opening's longest part: seconds, once a run has been evaluated."""
    told = (
        "import sys; from pathlib import Path; import luthier.board.app\n"
        "from luthier.board.index import summarise; from luthier.run import Run\n"
        f"print(summarise(Run(Path({str(EVALUATED)!r}))).verdict, 'torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["better", "False"]
