"""How threads should wait for each other: OpenMP's policies, on a quiet machine and on a busy one.

    python benchmarks/bench_runtime.py [--works products,tiny,real] [--rounds 3] [--seconds 20]

Each work runs in a process of its own for some seconds, under each policy in turn, as many rounds as
asked; the median time of a unit of work counts. The neighbour is one process a core that does nothing
but spin. `products` is a matrix product of 32 x 128 x 128, `tiny` a step of `luthier train` on a
two-layer model, `real` one on the 135M model, LoRA, 256 tokens.
"""

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
POLICIES: dict[str, dict[str, str]] = {
    "default": {"GOMP_SPINCOUNT": "300000"},  # GNU's count where nobody sets one; Luthier does
    "spin-10000": {"GOMP_SPINCOUNT": "10000"},
    "spin-1000": {"GOMP_SPINCOUNT": "1000"},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
}
UNITS = {"products": 20, "tiny": 1, "real": 1}  # of work between two ticks
WARM_UP = 2  # ticks that do not count


def tick() -> None:
    print(time.perf_counter(), flush=True)


def products() -> None:
    import torch

    left, right = torch.ones(32, 128), torch.ones(128, 128)
    while True:
        for _ in range(UNITS["products"]):
            left @ right
        tick()


def train(source: str, length: int, folder: Path) -> None:
    from luthier.events import Event, Step
    from luthier.recipe import parse_recipe
    from luthier.run import claim_run
    from luthier.train.fit import fit

    rows = folder / "rows.jsonl"
    words = " ".join(str(n) for n in range(length // 3))
    rows.write_text(f'{{"instruction": "count", "output": "{words}"}}\n' * 400, "utf-8")
    recipe = parse_recipe(
        "",
        [
            f"model.source={source}",
            "model.dtype=float32",
            f"data.train={rows}",
            "data.validation_fraction=0",
            f"data.max_length={2 * length}",
            "train.per_device_train_batch_size=2",
            "train.gradient_accumulation_steps=1",
            "train.max_steps=100000",
            "evaluate.probe=false",
            f"run.dir={folder}",
            "run.name=run",
        ],
    )

    def on_event(event: Event) -> None:
        if isinstance(event, Step):
            tick()

    fit(recipe, claim_run(recipe, "bench"), on_event)


def tiny() -> None:
    sys.path.insert(0, str(ROOT / "tests"))
    from families import save_tiny

    with tempfile.TemporaryDirectory() as name:
        train(str(save_tiny(Path(name) / "tiny")), 64, Path(name))


def real() -> None:
    with tempfile.TemporaryDirectory() as name:
        train("smollm2-135m", 128, Path(name))


WORKS: dict[str, Callable[[], None]] = {"products": products, "tiny": tiny, "real": real}


def unit_seconds(work: str, policy: dict[str, str], seconds: float) -> float | None:
    """Median seconds of a unit of ``work``; None where it did not come to three in time."""
    free = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    process = subprocess.Popen(
        [sys.executable, __file__, "--work", work],
        env={**free, "OMP_NUM_THREADS": str(os.cpu_count()), **policy},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        first = process.stdout.readline()  # imports and loading are over
        if not first:
            raise SystemExit(f"{work} ended with {process.wait()} before its first unit")
        time.sleep(seconds)
    finally:
        process.send_signal(signal.SIGKILL)
    ticks = [float(line) for line in [first, *process.stdout] if line.endswith("\n")]
    process.wait()
    gaps = [after - before for before, after in pairwise(ticks)][WARM_UP:]
    return statistics.median(gaps) / UNITS[work] if gaps else None


@contextmanager
def neighbour(busy: bool, seconds: float) -> Iterator[None]:
    """A process a core that spins, for so long at most."""
    spin = f"import time\nend = time.time() + {seconds}\nwhile time.time() < end: pass"
    count = (os.cpu_count() or 1) if busy else 0
    spinning = [subprocess.Popen([sys.executable, "-c", spin]) for _ in range(count)]
    try:
        yield
    finally:
        for process in spinning:
            process.kill()
            process.wait()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--works", default=",".join(WORKS))
    parser.add_argument("--policies", default=",".join(POLICIES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--work", choices=WORKS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        WORKS[options.work]()
        return
    chosen = {name: POLICIES[name] for name in options.policies.split(",")}
    table = Table("work", "neighbour", *chosen, title="ms a unit, median (share of the first)")
    for work in options.works.split(","):
        for busy in (False, True):
            found: dict[str, list[float]] = {name: [] for name in chosen}
            for _ in range(options.rounds):
                for name, policy in chosen.items():
                    with neighbour(busy, 60 + options.seconds):
                        took = unit_seconds(work, policy, options.seconds)
                    found[name].append(took if took is not None else float("inf"))
            medians = {name: statistics.median(times) for name, times in found.items()}
            first = medians[next(iter(chosen))]
            cells = [f"{s * 1e3:,.3g} ({s / first:.0%})" for s in medians.values()]
            table.add_row(work, "busy" if busy else "quiet", *cells)
            print(
                work,
                "busy" if busy else "quiet",
                found,
                f"load {os.getloadavg()[0]:.1f}",
                flush=True,
            )
    Console().print(table)
    print(f"load average {os.getloadavg()[0]:.1f} at the end, {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
