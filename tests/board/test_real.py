"""The whole path in a browser with the real small model, over the death of the board."""

import json
import os
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

_PATIENCE = 600_000  # milliseconds; machines that test are busy
_STEPS = 24


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """The run that the form starts; a test that fails leaves no process behind."""
    found = Run(tmp_path / "runs" / "real")
    yield found
    if (process := found.worker()) is not None:
        os.kill(process, signal.SIGKILL)


@pytest.mark.real
def test_start_watch_kill_stop_resume_evaluate_chat(
    tmp_path: Path, run: Run, real_model: Path
) -> None:
    rows = tmp_path / "capitals.jsonl"
    rows.write_text(
        "".join(
            json.dumps({"prompt": f"Write {n} in words backwards.", "completion": f"<{n}>"}) + "\n"
            for n in range(120)
        )
    )
    with board(run.root.parent, "--data", real_model) as found, browser() as tab:
        tab.set_default_timeout(_PATIENCE)
        tab.goto(found.address)
        tab.get_by_role("link", name="Start the first one").click()
        tab.get_by_label("Model", exact=True).fill(str(real_model))
        tab.locator("input[type=file]").set_input_files(rows)
        for key, value in {
            "run.name": "real",
            "data.max_length": "64",
            "train.max_steps": str(_STEPS),
            "train.per_device_train_batch_size": "2",
            "train.gradient_accumulation_steps": "1",
            "evaluate.metrics": "[exact_match]",
        }.items():
            tab.get_by_label(key, exact=True).fill(value)
        tab.get_by_text("evaluate.probe", exact=True).click()
        tab.get_by_text("More of train", exact=True).click()
        for key in ("train.eval_steps", "train.save_steps", "train.logging_steps"):
            tab.get_by_label(key, exact=True).fill("1" if "logging" in key else "4")
        tab.get_by_text("More of evaluate", exact=True).click()
        tab.get_by_label("evaluate.max_rows", exact=True).fill("4")
        tab.get_by_label("evaluate.max_new_tokens", exact=True).fill("8")
        tab.wait_for_selector(".stack")  # the plan
        tab.get_by_role("button", name="Start the run").click()
        tab.wait_for_url("**/run/real")
        # The curve moves in the page without it being loaded again.
        curve = tab.get_by_role("img", name="Loss by step").locator("canvas")
        curve.wait_for()
        first = curve.screenshot()
        step = tab.get_by_text(f" of {_STEPS}").first
        said = step.inner_text()
        wait_until(lambda: step.inner_text() != said, "the step moves", 600)
        wait_until(lambda: curve.screenshot() != first, "the curve moves", 600)
        found.process.kill()
        found.process.wait(20)
    assert run.worker() is not None or run.finished
    with board(run.root.parent, "--data", real_model) as found, browser() as tab:
        tab.set_default_timeout(_PATIENCE)
        tab.goto(found.address)
        tab.get_by_role("link", name="real").click()
        tab.get_by_role("button", name="Stop").click()
        wait_until(lambda: run.worker() is None, "the run stops", 600)
        assert run.checkpoints() and not run.finished
        tab.get_by_role("button", name="Resume").click()
        tab.get_by_role("button", name="Evaluate").click()
        tab.get_by_text("Is it better at the task?").wait_for()
        assert [line.step for line in run.metrics() if line.loss is not None][-1] == _STEPS
        tab.goto(f"{found.root}/chat?run=real")
        tab.get_by_label("Longest answer, in tokens").fill("8")
        tab.get_by_label("Your question").fill("Write 7 in words backwards.")
        tab.get_by_role("button", name="Ask").click()
        tab.get_by_role("button", name="Tuned answer 2 is best").click()
        tab.get_by_text("is preferred").wait_for()
        assert tab.errors == [] and tab.seen <= {"127.0.0.1", ""}
