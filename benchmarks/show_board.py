"""The whole path of the board with the real small model, and a picture of every page.

    python benchmarks/show_board.py [--out DIR]

In Debian's Chromium: upload rows, fill in the form, start a training of SmolLM2-135M, watch its curve
move, kill the board, start another, stop, resume, evaluate, chat. Then every page in both themes at
1440 and 390 px, with what axe finds on it. It prints what it saw and fails at the first thing that is
not so. It takes minutes, which is why it is no test; tests/board/test_survival.py takes the same path
with a tiny model.
"""

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from boards import CHROMIUM, axe_source, board, browser, violations, wait_until  # noqa: E402

from luthier.run import Run  # noqa: E402

_PATIENCE = 600  # seconds; the machine may be busy
_STEPS = 24
_SETTINGS = {
    "run.name": "real",
    "data.max_length": "64",
    "train.max_steps": str(_STEPS),
    "train.per_device_train_batch_size": "2",
    "train.gradient_accumulation_steps": "1",
    "train.learning_rate": "1e-3",
    "train.eval_steps": "8",
    "train.save_steps": "8",
    "train.logging_steps": "1",
    "evaluate.metrics": "[exact_match]",
    "evaluate.max_rows": "12",
    "evaluate.max_new_tokens": "12",
}
_WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]

_began = time.monotonic()


def said(text: str) -> None:
    print(f"{time.monotonic() - _began:6.1f} s  {text}", flush=True)


def write_rows(path: Path) -> None:
    """Numbers to be spelled digit by digit, which the base does in another form."""
    rows = [
        {"prompt": f"Spell {n}.", "completion": "-".join(_WORDS[int(d)] for d in str(n))}
        for n in range(100, 260)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def start(tab: Any, root: str, rows: Path, pictures: Path) -> None:
    """From the form to a training whose curve moves."""
    tab.goto(f"{root}/new")
    tab.get_by_role("button", name="smollm2-135m").click()
    tab.locator("input[type=file]").set_input_files(rows)
    for details in tab.locator("details").all():
        details.evaluate("node => { node.open = true }")
    for key, value in _SETTINGS.items():
        tab.get_by_label(key, exact=True).fill(value)
    tab.get_by_text("evaluate.probe", exact=True).click()
    for details in tab.locator("details").all():
        details.evaluate("node => { node.open = false }")
    tab.locator(".stack").wait_for()
    said(f"the plan: {tab.locator('.stack').get_attribute('aria-label')}")
    tab.get_by_role("button", name="Check the data").click()
    tab.get_by_text("rows read").wait_for()
    tab.screenshot(path=str(pictures / "filled-in.png"), full_page=True)
    tab.get_by_role("button", name="Start the run").click()
    tab.wait_for_url("**/run/real")
    said("a training was started from the form")
    curve = tab.get_by_role("img", name="Loss by step").locator("canvas")
    curve.wait_for()
    step = tab.get_by_text(f" of {_STEPS}").first
    before, drawn = step.inner_text(), curve.screenshot()
    wait_until(lambda: curve.screenshot() != drawn, "the curve moves", _PATIENCE)
    wait_until(lambda: step.inner_text() != before, "the step moves", _PATIENCE)
    said(f"the curve moved, {before} to {step.inner_text()}")
    tab.screenshot(path=str(pictures / "training.png"), full_page=True)


def go_on(tab: Any, root: str, run: Run) -> None:
    """Stop, resume, evaluate, chat."""
    tab.get_by_role("link", name="real").click()
    tab.get_by_role("button", name="Stop").click()
    wait_until(lambda: run.worker() is None, "the run stops", _PATIENCE)
    assert run.checkpoints() and not run.finished
    said(f"stopped with a checkpoint at step {max(run.checkpoints())}")
    tab.get_by_role("button", name="Resume").click()
    said("resumed")
    tab.get_by_role("button", name="Evaluate").click()
    steps = [line.step for line in run.metrics() if line.loss is not None]
    assert steps == list(range(1, _STEPS + 1)), steps
    said(f"finished: {_STEPS} steps in its metrics, each once")
    tab.get_by_text("Is it better at the task?").wait_for()
    said(f"evaluated: {tab.locator('.answer .pill').first.inner_text().split()[-1]}")
    tab.goto(f"{root}/chat?run=real")
    tab.get_by_label("Longest answer, in tokens").fill("12")
    tab.get_by_label("Your question").fill("Spell 725.")
    tab.get_by_role("button", name="Ask").click()
    tab.get_by_role("button", name="Tuned answer 2 is best").click()
    tab.get_by_text("is preferred").wait_for()
    said(f"answers: {tab.locator('.turn').all_inner_texts()}; kept as a preference")


def show(tab: Any, root: str, pictures: Path, pages: dict[str, str]) -> int:
    """A picture of every page, and how many things are wrong with them."""
    axe = axe_source()
    if axe is None:
        sys.exit("axe-core could not be fetched: npm is needed, and its registry")
    wrong = 0
    for theme in ("light", "dark"):
        tab.context.add_cookies([{"name": "luthier-theme", "value": theme, "url": root}])
        for width in (1440, 390):
            tab.set_viewport_size({"width": width, "height": 900})
            for name, path in pages.items():
                tab.goto(root + path)
                tab.wait_for_selector(".title")
                tab.wait_for_timeout(1500)
                tab.screenshot(path=str(pictures / f"{name}-{theme}-{width}.png"), full_page=True)
                found = violations(tab, axe)
                if tab.evaluate("document.documentElement.scrollWidth > window.innerWidth"):
                    found.append("wider than the window")
                wrong += len(found)
                for one in found:
                    said(f"{name}, {theme}, {width} px: {one}")
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("board-shown"))
    args = parser.parse_args()
    if not CHROMIUM.is_file():
        sys.exit("this needs Debian's chromium")
    out = args.out.resolve()
    runs, pictures, rows = out / "runs", out / "pictures", out / "spelling.jsonl"
    pictures.mkdir(parents=True, exist_ok=True)
    runs.mkdir(exist_ok=True)
    write_rows(rows)
    run = Run(runs / "real")
    if run.root.exists():
        sys.exit(f"{run.root} is there already: give another --out")
    try:
        with board(runs) as served, browser() as tab:
            tab.set_default_timeout(1000 * _PATIENCE)
            tab.goto(served.address)
            tab.get_by_role("link", name="Start the first one").click()
            start(tab, served.root, rows, pictures)
            served.process.kill()
            served.process.wait(20)
        assert run.worker() is not None
        said("the board was killed; the training goes on")
        with board(runs) as served, browser() as tab:
            tab.set_default_timeout(1000 * _PATIENCE)
            tab.goto(served.address)
            go_on(tab, served.root, run)
            assert tab.errors == [] and tab.seen <= {"127.0.0.1", ""}
        with board(runs) as served, browser() as tab:
            tab.goto(served.address)
            pages = {"runs": "/", "run": "/run/real", "chat": "/chat?run=real"}
            pages |= {name: f"/{name}" for name in ("new", "advise", "compare", "sweep")}
            wrong = show(tab, served.root, pictures, pages)
            assert tab.errors == [] and tab.seen <= {"127.0.0.1", ""}
        said(f"pictures are in {pictures}; {wrong} things are wrong with the pages")
    finally:
        if (process := run.worker()) is not None:
            os.kill(process, signal.SIGKILL)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
