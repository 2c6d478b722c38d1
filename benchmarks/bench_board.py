"""How soon the list of the board is usable: 10,000 runs of 1,000 points, beside a folder of ten.

    python benchmarks/bench_board.py [--runs 10000] [--points 1000] [--keep DIR]

Makes the run folders from a real one (recipe, plan, evaluation, measured figures; metrics of so many
lines), starts `luthier board`, and opens its page in Debian's Chromium with an empty cache. The time is
from the request to the first rows with their figures. Then the page is opened again, sorted and
filtered; then the board is started anew, which has kept what it knew of finished runs.
"""

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from boards import CHROMIUM, board, browser  # noqa: E402

_BODIES = 40  # different curves; each file is written whole all the same
_ROW = "document.querySelector('.ag-center-cols-container .ag-row .link')"


def make_runs(folder: Path, count: int, points: int) -> None:
    """Run folders: most finished and evaluated, some stopped, some failed."""
    draw = random.Random(0)
    real = ROOT / "tests" / "run-0.1"
    records = {name: (real / name).read_bytes() for name in ("recipe.yaml", "plan.json")}
    evaluation = (real / "evaluation.json").read_bytes()
    measured = json.loads((real / "measured.json").read_bytes())
    bodies = [_metrics(draw, points) for _ in range(_BODIES)]
    for number in range(count):
        run = folder / f"run-{number:05}"
        run.mkdir(parents=True)
        for name, text in records.items():
            (run / name).write_bytes(text)
        body, least = bodies[number % _BODIES]
        (run / "metrics.jsonl").write_bytes(body)
        kind = number % 10
        if kind < 8:
            took = {**measured, "steps": points, "best_step": points, "best_eval_loss": least}
            took["seconds"] = draw.uniform(60, 9000)
            (run / "measured.json").write_text(json.dumps(took))
            (run / "evaluation.json").write_bytes(evaluation)
        else:
            ended = {
                "event": "stopped",
                "time": "2026-01-01T00:00:00+00:00",
                "reason": "out of memory",
            }
            (run / "events.jsonl").write_text(
                json.dumps({**ended, "interrupted": kind == 8}) + "\n"
            )


def _metrics(draw: random.Random, points: int) -> tuple[bytes, float]:
    """The lines of a curve that falls, and its lowest validation loss."""
    lines, least, end = [], 9.0, draw.uniform(0.5, 2.0)
    for step in range(1, points + 1):
        loss = end + 2.5 / step**0.4 + draw.gauss(0, 0.05)
        line: dict[str, Any] = {
            "step": step,
            "epoch": round(step / 300, 4),
            "loss": loss,
            "grad_norm": abs(draw.gauss(1, 0.3)),
            "learning_rate": 2e-4 * (1 - step / points),
            "tokens_per_second": draw.uniform(400, 500),
            "tokens": step * 931,
            "memory_bytes": 2_212_929_536,
            "seconds": step * 1.7,
        }
        if step % 50 == 0:
            line = {k: line[k] for k in ("step", "epoch", "memory_bytes", "seconds")}
            line["eval_loss"] = loss + 0.1
            least = min(least, line["eval_loss"])
        lines.append(json.dumps(line))
    return ("\n".join(lines) + "\n").encode(), least


def opened(folder: Path, more: int = 0) -> dict[str, float]:
    """Seconds of a first and a second opening, and of more where asked for ``more`` runs."""
    took = {}

    def timed(name: str, do: Callable[[], object], wait: str) -> None:
        began = time.perf_counter()
        do()
        tab.wait_for_function(wait, polling=20)
        took[name] = time.perf_counter() - began

    with board(folder) as served, browser() as tab:
        tab.goto("about:blank")
        timed("first opening", lambda: tab.goto(served.address, wait_until="commit"), f"!!{_ROW}")
        timed("second opening", lambda: tab.goto(served.root, wait_until="commit"), f"!!{_ROW}")
        if more:
            began = time.perf_counter()
            tab.wait_for_function(
                f"[...document.querySelectorAll('.num')].some(x => x.textContent === '{more:,} runs')",
                timeout=300_000,
            )
            took["all of them read, besides"] = time.perf_counter() - began
            field = tab.get_by_label("Filter the runs")
            timed("filter", lambda: field.fill("run-04321"), f"{_ROW}?.textContent === 'run-04321'")
            field.fill("")
            tab.wait_for_function(f"{_ROW} && {_ROW}.textContent !== 'run-04321'")
            before = tab.evaluate(f"{_ROW}.textContent")
            head = tab.locator(".ag-header-cell[col-id=validation]")
            timed("sort", head.click, f"{_ROW} && {_ROW}.textContent !== {before!r}")
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--points", type=int, default=1_000)
    parser.add_argument("--keep", type=Path, help="make the runs here, and leave them")
    args = parser.parse_args()
    if not CHROMIUM.is_file():
        sys.exit("this needs Debian's chromium")
    place = args.keep or Path(tempfile.mkdtemp(prefix="luthier-board-"))
    try:
        few, many = place / "few", place / "many"
        began = time.perf_counter()
        if not few.is_dir():
            make_runs(few, 10, args.points)
        if not many.is_dir():
            make_runs(many, args.runs, args.points)
        print(f"folders made in {time.perf_counter() - began:.0f} s", flush=True)
        shutil.rmtree(many / ".board", ignore_errors=True)
        rows = {
            "10 runs": opened(few),
            f"{args.runs:,} runs, never seen": opened(many, more=args.runs),
            f"{args.runs:,} runs, board started anew": opened(many),
        }
        peer = rows["10 runs"]
        for name, took in rows.items():
            for what, seconds in took.items():
                beside = f", {seconds / peer[what]:.2f} of ten runs' time" if what in peer else ""
                print(f"{name}: {what} {seconds:.2f} s{beside}")
    finally:
        if args.keep is None:
            shutil.rmtree(place, ignore_errors=True)


if __name__ == "__main__":
    main()
