"""The whole path in a browser, over the death of the board."""

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from boards import CHROMIUM, board, browser, wait_until

from luthier.run import Run

pytest.importorskip("nicegui", reason="the board needs the extra 'board'")
pytest.importorskip("playwright", reason="these tests drive a browser by Playwright")
if not CHROMIUM.is_file():
    pytest.skip("these tests need Debian's chromium", allow_module_level=True)


@pytest.fixture
def run(shown_runs: Path) -> Iterator[Run]:
    """The run that the form starts; a test that fails leaves no process behind."""
    found = Run(shown_runs / "from-form")
    yield found
    if (process := found.worker()) is not None:
        os.kill(process, signal.SIGKILL)


_PATIENCE = 180_000  # milliseconds; machines that test are busy


def test_a_run_from_the_form_survives_the_board(
    shown_runs: Path, run: Run, tiny_model: Path
) -> None:
    """Start, watch the curve move, kill the board, start it again, stop, resume, evaluate, chat."""
    runs = shown_runs
    folders = ("--data", runs.parent, "--data", tiny_model)
    with board(runs, *folders) as found, browser() as tab:
        tab.set_default_timeout(_PATIENCE)
        tab.goto(found.address)
        tab.wait_for_selector(".ag-row")
        tab.goto(f"{found.root}/new")
        tab.get_by_label("Model", exact=True).fill(str(tiny_model))
        tab.get_by_label("Path, several with commas").fill(str(runs.parent / "rows.jsonl"))
        for key, value in {
            "run.name": "from-form",
            "data.max_length": "128",
            "train.max_steps": "20000",
            "evaluate.metrics": "[exact_match]",
        }.items():
            tab.get_by_label(key, exact=True).fill(value)
        tab.get_by_text("evaluate.probe", exact=True).click()
        tab.get_by_text("More of train", exact=True).click()
        tab.get_by_label("train.compile", exact=True).click()
        tab.get_by_role("option", name="never").click()
        tab.get_by_role("button", name="Check the data").click()
        tab.get_by_text("fewer than 500").first.wait_for()
        tab.get_by_role("button", name="Show a row as the model sees it").click()
        tab.wait_for_selector(".tokens .learned")
        tab.get_by_text("of them train").or_(tab.get_by_text("parameters train")).first.wait_for()
        tab.wait_for_timeout(500)
        tab.get_by_role("button", name="Start the run").click()
        tab.wait_for_url("**/run/from-form")
        step = tab.get_by_text(re.compile(r"^step [\d,]+ of"))  # the log has steps, too
        step.wait_for()
        first = step.inner_text()
        wait_until(lambda: step.inner_text() != first, "the step moves")
        found.process.kill()
        found.process.wait(20)
    assert run.worker() is not None  # neither board nor browser are there
    with board(runs, *folders) as found, browser() as tab:
        tab.set_default_timeout(_PATIENCE)
        tab.goto(found.address)
        tab.get_by_text("running").first.wait_for()
        tab.goto(f"{found.root}/run/from-form")
        tab.get_by_role("button", name="Stop").click()
        wait_until(lambda: run.worker() is None, "the run stops")
        tab.get_by_role("button", name="Resume").click()
        wait_until(lambda: run.worker() is not None, "the run resumes")
        tab.get_by_role("button", name="Stop").click()
        wait_until(lambda: run.worker() is None, "the run stops again")
        assert run.checkpoints()
        tab.goto(f"{found.root}/run/first")
        (runs / "first" / "evaluation.json").unlink()
        tab.get_by_role("button", name="Evaluate").click()
        tab.get_by_text("Is it better at the task?").wait_for()
        tab.goto(f"{found.root}/chat?run=first")
        tab.get_by_label("Longest answer, in tokens").fill("8")
        tab.get_by_label("Your question").fill("Repeat the number 3")
        tab.get_by_role("button", name="Ask").click()
        tab.get_by_text("Which answer is best?").wait_for()
        tab.get_by_role("button", name="Tuned answer 2 is best").click()
        tab.get_by_text("is preferred").wait_for()
        assert tab.errors == [] and tab.seen <= {"127.0.0.1", ""}
