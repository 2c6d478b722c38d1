"""Work in a process that outlives the one that asked for it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers import wait_for_step

from luthier import api
from luthier.errors import UserError
from luthier.recipe import Recipe
from luthier.run import Run, claim_run

LONG = (
    "train.compile=never",
    "train.max_steps=100000",
    "train.save_steps=50",
    "train.eval_steps=1000",
    "train.logging_steps=1",
)


@pytest.fixture(autouse=True)
def _nothing_stays(tmp_path: Path) -> Iterator[None]:
    """A test that fails leaves no process behind."""
    yield
    run = Run(tmp_path / "runs" / "run")
    if (process := run.worker()) is not None:
        os.kill(process, signal.SIGKILL)


def wait_until(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if true():
            return
        time.sleep(0.05)
    raise AssertionError(f"not within two minutes: {what}")


def test_a_run_is_started_stopped_and_resumed(make_recipe: Callable[..., Recipe]) -> None:
    recipe = make_recipe(*LONG)
    run = claim_run(recipe, "test")
    process = api.start_training(recipe, run)
    assert run.worker() == process != os.getpid()
    with pytest.raises(UserError, match="another process is using"):
        api.start_training(recipe, run)
    wait_for_step(run, 3)
    assert os.getsid(process) == process  # no terminal ends it
    api.stop_run(run)
    wait_until(lambda: run.worker() is None, "the run stops")
    (step,) = run.checkpoints()  # of the moment it was asked to stop, or saved on the way
    assert step >= 3
    wait_until(lambda: "everything is saved" in run.output_path.read_text(), "it says so")
    with pytest.raises(UserError, match="no process is working"):
        api.stop_run(run)
    api.start_training(run.recipe(), run)
    wait_for_step(run, step + 2)
    os.kill(run.worker() or 0, signal.SIGKILL)
    wait_until(lambda: run.worker() is None, "the run is dead")
    assert run.worker_path.exists()  # a killed process cannot tidy up


def test_a_run_outlives_the_process_that_started_it(
    make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(make_recipe(*LONG).to_yaml())
    code = (
        "from luthier import api; from luthier.recipe import load_recipe; from luthier.run import claim_run\n"
        f"from pathlib import Path; r = load_recipe(Path({str(path)!r})); api.start_training(r, claim_run(r, 'x'))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    run = Run(tmp_path / "runs" / "run")
    wait_for_step(run, 2)
    assert run.worker() is not None
    api.stop_run(run)
    wait_until(lambda: run.worker() is None, "the run stops")


def test_a_run_that_cannot_begin_says_why(
    make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    recipe = make_recipe(f"data.train={tmp_path / 'none.jsonl'}")
    run = claim_run(recipe, "test")
    api.start_training(recipe, run)
    wait_until(lambda: "error: " in run.output_path.read_text(), "the run ends")
    wait_until(lambda: run.worker() is None, "its process is gone")
    said = run.output_path.read_text()
    assert "error: " in said and "none.jsonl" in said and "Traceback" not in said


def test_an_evaluation_runs_apart_too(
    make_recipe: Callable[..., Recipe], train: Callable[..., Run]
) -> None:
    small = ("evaluate.max_rows=2", "evaluate.max_new_tokens=4")
    run = train(make_recipe("train.max_steps=2", *small))
    api.start_evaluation(run)
    wait_until(lambda: run.report_path.is_file(), "the report is written")
    assert run.evaluation() is not None
