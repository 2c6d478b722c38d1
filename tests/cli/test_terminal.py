"""What a person sees of events: bars in a terminal, lines in a pipe."""

import io
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console

from luthier.cli import terminal as module
from luthier.cli.terminal import terminal
from luthier.events import (
    Checkpoint,
    Evaluation,
    Event,
    Finished,
    Note,
    Progress,
    Started,
    Step,
    during,
    tracked,
)
from luthier.records import Measured, MetricsLine


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(module, "monotonic", found)
    return found


def pipe() -> Console:
    return Console(file=io.StringIO(), width=80)


def screen() -> Console:
    return Console(file=io.StringIO(), width=100, force_terminal=True, color_system=None)


def text(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def count_to(total: int, task: str, seconds: list[float], clock: Clock) -> Iterator[Event]:
    """Events of work of ``total`` pieces, the first of which is done after ``seconds[0]`` …"""
    yield Progress(task, 0, total, "rows")
    for done in range(1, total):
        clock.now += seconds[min(done, len(seconds)) - 1]
        yield Progress(task, done, total, "rows")
    clock.now += seconds[-1]
    yield Progress(task, total, total, "rows")


def step(number: int, seconds: float, **figures: float) -> Step:
    return Step(MetricsLine(step=number, epoch=0, memory_bytes=2**30, seconds=seconds, **figures))


def measured() -> Measured:
    return Measured(
        steps=4, best_step=4, best_eval_loss=None, best_eval_perplexity=None, stopped_early=False,
        seconds=1, tokens=1, tokens_per_second=1, peak_memory_bytes=1, trainable_parameters=1,
        total_parameters=1, device="cpu", dtype="float32", weights="adapter",
    )  # fmt: skip


def test_a_pipe_gets_a_line_when_work_is_long_and_then_every_few_seconds(clock: Clock) -> None:
    console = pipe()
    with terminal(console) as on_event:
        for event in count_to(10_240, "tokenising rows", [2**-10], clock):
            on_event(event)
        for event in count_to(30, "loss of base", [1.0], clock):
            on_event(event)
    lines = text(console).splitlines()
    assert lines == [
        # 10 seconds of it: after 2, and 5 later.
        "tokenising rows: 2,048 of 10,240, 1,000/s, ETA 0:08",
        "tokenising rows: 7,168 of 10,240, 1,000/s, ETA 0:03",
        "tokenising rows: 10,240 rows in 0:10",
        "loss of base: 2 of 30, 1/s, ETA 0:28",
        "loss of base: 7 of 30, 1/s, ETA 0:23",
        "loss of base: 12 of 30, 1/s, ETA 0:18",
        "loss of base: 17 of 30, 1/s, ETA 0:13",
        "loss of base: 22 of 30, 1/s, ETA 0:08",
        "loss of base: 27 of 30, 1/s, ETA 0:03",
        "loss of base: 30 rows in 0:30",
    ]


def test_work_of_unknown_size_has_a_count_and_no_time_left(clock: Clock) -> None:
    console = pipe()
    with terminal(console) as on_event:
        for done in range(0, 50_001, 12_500):
            on_event(Progress("reading a.jsonl", done, None, "rows"))
            clock.now += 1
        on_event(Progress("reading a.jsonl", 60_000, 60_000, "rows"))
    assert text(console).splitlines() == [
        "reading a.jsonl: 25,000 rows, 12,000/s",
        "reading a.jsonl: 60,000 rows in 0:05",
    ]


def test_nothing_is_said_of_work_that_is_over_in_a_moment(clock: Clock) -> None:
    for console in (pipe(), screen()):
        with terminal(console) as on_event:
            for task in ("reading", "tokenising", "loss"):
                for event in count_to(100, task, [0.001], clock):
                    on_event(event)
            with during("loading the model", on_event):
                clock.now += 0.2
        shown = text(console)
        assert not any(task in shown for task in ("reading", "tokenising", "loss", "loading"))


def test_long_work_is_told_of_less_often(clock: Clock) -> None:
    """In a pipe: every five seconds at first, then when a tenth more time has gone by."""
    console = pipe()
    with terminal(console) as on_event:
        for _ in range(601):
            on_event(Progress("answers", 0, 168, "answers"))
            clock.now += 1
    lines = text(console).splitlines()
    assert lines[:3] == [f"answers: 0 of 168, 0:{at} so far" for at in ("02", "07", "12")]
    assert 25 < len(lines) < 40
    assert len(set(lines)) == len(lines)


def test_a_slow_first_piece_does_not_count_in_the_time_left(clock: Clock) -> None:
    console = pipe()
    with terminal(console) as on_event:
        for event in count_to(20, "answers", [60.0, 1.0], clock):
            on_event(event)
        clock.now += 100
        on_event(Started(100, 140))
        on_event(step(110, 600.0, loss=2.0))
        on_event(step(120, 610.0, loss=1.5))
        on_event(step(130, 620.0, loss=1.0))
    lines = text(console).splitlines()
    assert lines[0] == "answers: 1 of 20, 1:00 so far"  # nobody knows yet how fast the others are
    assert lines[1] == "answers: 8 of 20, 1/s, ETA 0:12"
    assert [line.rpartition("ETA ")[2] for line in lines if line.startswith("step")] == [
        "–:––",
        "0:20",
        "0:10",
    ]


def test_work_that_says_nothing_for_long_is_shown_by_the_time_it_takes() -> None:
    console = pipe()
    with terminal(console) as on_event, during("loading the model", on_event):
        time.sleep(2.8)
    assert text(console).splitlines() == [
        "loading the model: 0:02 so far",
        "loading the model: done in 0:03",
    ]


def test_a_run_in_a_pipe_has_some_twenty_lines_and_each_evaluation() -> None:
    console = pipe()
    with terminal(console) as on_event:
        on_event(Started(0, 200))
        for number in range(1, 201):
            on_event(step(number, number * 0.5, loss=2.0, tokens_per_second=1234.0))
            if number == 105:
                on_event(Checkpoint(number, Path("step-105"), True))
                line = step(number, 52.0).line
                found = {"eval_loss": 1.25, "eval_probe_accuracy": 0.5}
                on_event(Evaluation(line.model_copy(update=found)))
        on_event(Finished(measured()))
    lines = text(console).splitlines()
    assert lines[0] == "step 1/200  loss 2.000  1,234 tok/s  1.0 GiB  ETA –:––"
    assert lines[1] == "step 11/200  loss 2.000  1,234 tok/s  1.0 GiB  ETA 1:34"
    assert lines[-1].startswith("step 200/200  loss 2.000  val 1.250  probe 50%")
    assert sum("step 105/200" in line for line in lines) == 1
    assert 20 <= len(lines) <= 24


def test_notes_and_warnings() -> None:
    for console in (pipe(), screen()):
        with terminal(console) as on_event:
            on_event(Started(0, 2))
            on_event(Note("[4] rows of " + "x" * 90))
            on_event(Note("the data leaks", warning=True))
        assert "[4] rows of " + "x" * 90 in text(console)  # not cut into lines, nor read as markup
        assert "warning: the data leaks" in text(console)


def test_a_terminal_shows_bars_and_leaves_none_behind(clock: Clock) -> None:
    console = screen()
    with terminal(console) as on_event:
        on_event(Started(0, 40))
        on_event(step(10, 10.0, loss=2.0))
        on_event(step(20, 20.0, loss=1.5))
        on_event(Progress("validation loss", 0, 50, "rows"))
        clock.now += 1
        on_event(Progress("validation loss", 5, 50, "rows"))
        on_event(Progress("reading a.jsonl", 0, None, "rows"))
        clock.now += 1
        on_event(Progress("validation loss", 15, 50, "rows"))
        on_event(Progress("reading a.jsonl", 70, None, "rows"))
        wait_for(lambda: "15 of 50" in text(console))
        shown = text(console)
        assert "20/40" in shown and "loss 1.500" in shown and "ETA 0:20" in shown
        assert "15 of 50  10/s  ETA 0:04" in shown
        assert "70 rows" in shown
    assert after_the_display(console) == ["step 20/40  loss 1.500  1.0 GiB  0:20"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_error_or_ctrl_c_leaves_no_bar_behind(error: type[BaseException], clock: Clock) -> None:
    console = screen()
    with pytest.raises(error), terminal(console) as on_event:
        for number in tracked(range(10), "reading a.jsonl", on_event, 10):
            clock.now += 1
            if number == 2:
                wait_for(lambda: "1 of 10" in text(console))
                raise error
    assert after_the_display(console) == []
    assert "\x1b[?25h" in text(console)  # the cursor is back
    on_event(Note("too late"))
    assert "too late" not in text(console)


def test_blocks_inside_one_another_share_the_display_and_others_follow() -> None:
    console = screen()
    with terminal(console) as outer:
        outer(Started(0, 2))
        with terminal(console) as inner:
            inner(step(1, 1.0, loss=3.0))
        outer(step(2, 2.0, loss=2.0))
    with terminal(console) as on_event:
        on_event(Note("again"))
    assert after_the_display(console) == ["step 2/2  loss 2.000  1.0 GiB  0:02", "again"]


def test_late_events_of_work_in_a_pipe_are_not_shown(clock: Clock) -> None:
    console = pipe()
    with terminal(console) as on_event:
        rows = tracked(range(10), "reading a.jsonl", on_event)
        next(rows)
        clock.now += 3
        next(rows)
    before = text(console)
    rows.close()  # type: ignore[attr-defined]
    assert text(console) == before


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "the display did not show it in time"
        time.sleep(0.02)


def after_the_display(console: Console) -> list[str]:
    """The lines that stay on the screen: what follows the last time the display was wiped."""
    shown = text(console).rpartition("\x1b[2K")[2]
    for code in ("\x1b[?25h", "\x1b[1A", "\r"):
        shown = shown.replace(code, "")
    return shown.splitlines()
