"""`make soak`: 2,000 steps of the real trainer; memory flat, no descriptor left open, no line missing.

    python tests/faults/soak.py [--steps 2000] [--record FILE]

Memory is the resident set, sampled at every step and compared between the second tenth of the run
(the first warms caches up) and the last: medians, so that one allocation more or less is no matter.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from families import save_tiny
from helpers import read_metrics, write_rows

from luthier.events import Event, Step
from luthier.recipe import parse_recipe
from luthier.run import claim_run
from luthier.train.fit import fit

FLAT = 0.02


class Sampler:
    """A listener that looks at the process at each logged step."""

    def __init__(self) -> None:
        self.process = psutil.Process()
        self.memory: list[int] = []
        self.files: list[int] = []

    def __call__(self, event: Event) -> None:
        if isinstance(event, Step):
            self.memory.append(self.process.memory_info().rss)
            self.files.append(self.process.num_fds())


def soak(folder: Path, steps: int) -> dict[str, Any]:
    """Train ``steps`` steps and say what became of memory, descriptors and metrics."""
    rows = [
        {"instruction": f"Repeat {n}" + " and count" * (n % 9), "output": "1 2 3 " * (1 + n % 7)}
        for n in range(400)
    ]
    recipe = parse_recipe(
        "",
        [
            f"model.source={save_tiny(folder / 'model')}", "model.dtype=float32",
            f"data.train={write_rows(folder / 'rows.jsonl', rows)}", "data.max_length=128",
            "train.per_device_train_batch_size=2", "train.gradient_accumulation_steps=2",
            f"train.max_steps={steps}", f"train.eval_steps={max(1, steps // 10)}",
            f"train.save_steps={max(1, steps // 20)}", "train.eval_rows=16",
            f"run.dir={folder}", "run.name=soak",
        ],
    )  # fmt: skip
    sampler = Sampler()
    run = claim_run(recipe, "x")
    started = time.perf_counter()
    fit(recipe, run, sampler)
    seconds = time.perf_counter() - started
    lines = [line["step"] for line in read_metrics(run) if "loss" in line]
    tenth = steps // 10
    early = statistics.median(sampler.memory[tenth : 2 * tenth])
    late = statistics.median(sampler.memory[-tenth:])
    return {
        "steps": steps,
        "seconds": round(seconds, 1),
        "memory_early": early,
        "memory_late": late,
        "memory_growth": round(late / early - 1, 4),
        "files_early": max(sampler.files[tenth : 2 * tenth]),
        "files_late": max(sampler.files[-tenth:]),
        "lines_missing": sorted(set(range(1, steps + 1)) - set(lines))[:10],
        "lines_double": len(lines) - len(set(lines)),
    }


def sound(result: dict[str, Any]) -> bool:
    return (
        abs(result["memory_growth"]) <= FLAT
        and result["files_late"] <= result["files_early"]
        and not result["lines_missing"]
        and not result["lines_double"]
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--record", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = soak(Path(folder), options.steps)
    print(
        f"{result['steps']:,} steps in {result['seconds']:.0f} s: resident "
        f"{result['memory_early'] / 2**20:.1f} MiB, at the end {result['memory_late'] / 2**20:.1f} "
        f"({result['memory_growth']:+.2%}); open files {result['files_early']}, at the end "
        f"{result['files_late']}; lines missing {len(result['lines_missing'])}"
    )
    if options.record:
        with options.record.open("a") as file:
            file.write(json.dumps(result) + "\n")
    sys.exit(not sound(result))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    # As `luthier train` sets it, before torch is used.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    os.environ.setdefault("LRU_CACHE_CAPACITY", "64")
    main()
