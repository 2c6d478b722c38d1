"""The files of a run folder: metrics.jsonl, events.jsonl, log.txt."""

import json
import logging
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from helpers import Notes, read_metrics
from played import line, play

from luthier.errors import Interrupted, UserError
from luthier.events import Note, Progress, Started, Step
from luthier.recipe import Recipe
from luthier.run import Run
from luthier.sinks import growing
from luthier.sinks.all import stream_of
from luthier.sinks.files import MetricsFile


def read_events(run: Run) -> list[dict[str, Any]]:
    return [json.loads(text) for text in run.events_path.read_text("utf-8").splitlines()]


def steps(run: Run) -> list[tuple[str, int]]:
    return [("eval" if "eval_loss" in m else "train", m["step"]) for m in read_metrics(run)]


ALL_STEPS = [("train", 1), ("train", 2), ("eval", 2), ("train", 3), ("train", 4), ("eval", 4)]


def test_a_run_is_kept_as_metrics_events_and_log(recipe: Recipe, run: Run) -> None:
    with stream_of(recipe, run, Notes()) as stream:
        stream(Note("look here", warning=True))
        stream(Progress("reading", 1, 2))
        for event in play(run, 0, 4):
            stream(event)
    assert steps(run) == ALL_STEPS
    assert read_metrics(run)[0] == {
        "step": 1, "epoch": 0.25, "loss": 1.0, "learning_rate": 0.125, "memory_bytes": 1001,
        "seconds": 1.0,
    }  # fmt: skip
    assert run.metrics()[0] == line(1, loss=1.0, learning_rate=0.125)
    events = read_events(run)
    assert [event["event"] for event in events] == [
        *("note", "started", "step", "step", "evaluation", "checkpoint"),
        *("step", "step", "evaluation", "finished"),
    ]
    assert events[0]["text"] == "look here"
    assert events[0]["warning"] is True
    assert events[2]["line"] == read_metrics(run)[0]
    assert events[5]["path"] == str(run.checkpoint_path(2))
    assert events[-1]["measured"]["best_step"] == 4
    assert all(datetime.fromisoformat(event["time"]).tzinfo is not None for event in events)
    log = run.log_path.read_text("utf-8").splitlines()
    assert log[0].endswith("WARNING look here")
    assert log[1].endswith("INFO training from step 0 of 4")
    assert "step 1: loss 1, learning_rate 0.125" in log[2]
    assert log[-1].endswith("finished: the weights of step 4 of 4 are kept")
    assert not any("reading" in text for text in log)


@pytest.mark.parametrize("half", ["", '{"step": 3, "lo'])
def test_a_run_that_was_killed_repeats_no_line(half: str, recipe: Recipe, run: Run) -> None:
    with stream_of(recipe, run, Notes()) as stream:
        for event in play(run, 0, 3):
            stream(event)
    for path in (run.metrics_path, run.events_path):
        with path.open("a") as file:
            file.write(half)
    with stream_of(recipe, run, Notes()) as stream:
        for event in play(run, 2, 4):
            stream(event)
    assert steps(run) == ALL_STEPS
    assert [event["event"] for event in read_events(run)].count("started") == 2  # none is lost


def test_a_run_that_begins_anew_forgets_all(run: Run) -> None:
    sink = MetricsFile(run)
    for step in (0, 1):  # the probe is asked before the first step
        sink(Step(line(step, loss=1.0)))
    sink(Started(0, 4))
    sink(Step(line(0, loss=2.0)))
    assert [(m["step"], m["loss"]) for m in read_metrics(run)] == [(0, 2.0)]


def test_nothing_is_written_before_there_is_a_run(recipe: Recipe, tmp_path: Path) -> None:
    run = Run(tmp_path / "elsewhere")
    with pytest.raises(UserError), stream_of(recipe, run, Notes()) as stream:
        stream(Note("early"))
        raise UserError("the recipe is wrong")
    assert not run.root.exists()
    with stream_of(recipe, run, Notes()) as stream:
        stream(Note("early"))
        run.root.mkdir()
        run.recipe_path.write_text("model: {}\n")
        stream(Note("late"))
    assert [event["text"] for event in read_events(run)] == ["early", "late"]
    assert [text.split()[-1] for text in run.log_path.read_text().splitlines()] == ["early", "late"]


@pytest.mark.parametrize(
    ("error", "interrupted", "level", "said"),
    [
        (UserError("no rows"), False, "ERROR", "ended by an error: no rows"),
        (ZeroDivisionError("by 0"), False, "ERROR", "ended by an error: ZeroDivisionError: by 0"),
        (Interrupted("stopped at step 1"), True, "INFO", "stopped at step 1"),
    ],
)
def test_why_a_run_stopped_is_kept(
    error: Exception, interrupted: bool, level: str, said: str, recipe: Recipe, run: Run
) -> None:
    with pytest.raises(type(error)), stream_of(recipe, run, Notes()):
        raise error
    (last,) = read_events(run)
    assert (last["event"], last["interrupted"]) == ("stopped", interrupted)
    assert last["reason"] in said
    assert run.log_path.read_text().endswith(f"{level} {said}\n")


def test_the_libraries_are_heard_and_secrets_are_not_kept(
    recipe: Recipe, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_API_KEY", "abcdefghijklmnop")
    loggers = [logging.getLogger(name) for name in ("transformers.x", "accelerate", "luthier.data")]
    with stream_of(recipe, run, Notes()) as stream:
        for logger in loggers:
            logger.warning("by %s with abcdefghijklmnop", logger.name)
        stream(Note("the key is abcdefghijklmnop, 100% sure"))
    loggers[0].warning("too late")
    log = run.log_path.read_text()
    for logger in loggers:
        assert f"WARNING by {logger.name} with [secret]" in log
    assert "the key is [secret], 100% sure" in log
    assert "too late" not in log
    assert "abcdefgh" not in run.events_path.read_text()


def test_a_disk_that_is_full_for_a_while_loses_no_line(
    recipe: Recipe, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = Notes()
    full = False
    real_open = Path.open

    class HalfWritten:
        def __init__(self, file: Any) -> None:
            self.file = file

        def __enter__(self) -> "HalfWritten":
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def write(self, data: bytes) -> int:
            return int(self.file.write(data[:7]))

    def opened(path: Path, mode: str = "r", *args: Any, **more: Any) -> Any:
        file = real_open(path, mode, *args, **more)
        return HalfWritten(file) if full and mode == "ab" else file

    monkeypatch.setattr(growing.Path, "open", opened)
    with stream_of(recipe, run, heard) as stream:
        for event in play(run, 0, 4):
            full = isinstance(event, Step) and event.line.step in (2, 3)
            stream(event)
            if full:
                logging.getLogger("transformers").warning("in between")
    assert steps(run) == ALL_STEPS
    assert sorted(text.split()[0] for text in heard.warnings) == [
        "events.jsonl", "log.txt", "metrics.jsonl",
    ]  # fmt: skip
    assert all("the run continues" in text for text in heard.warnings)
    assert [event["event"] for event in read_events(run)].count("step") == 4
    assert run.log_path.read_text().count("in between") == 2
