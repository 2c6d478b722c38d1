"""Rows a second and peak memory of `luthier data check`, on generated rows.

    python benchmarks/bench_data_check.py [--rows 100000] [--model FOLDER]

One row in fifty repeats an earlier one exactly and one in fifty nearly, so that the figures printed
can be held against what was planted. Memory is the resident memory of all processes together,
sampled every 50 ms (shared pages count in each, so it is an upper bound).
"""

import argparse
import json
import random
import sys
import tempfile
import time
from pathlib import Path

import psutil

WORDS = 5_000


def generate(path: Path, rows: int) -> tuple[int, int]:
    """Write the rows; returns how many exact and near duplicates are among them."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=6)) for _ in range(WORDS)]
    exact = near = 0
    kept: list[dict[str, str]] = []
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            chance = draw.random()
            if kept and chance < 0.02:
                row, exact = draw.choice(kept), exact + 1
            elif kept and chance < 0.04:
                old = draw.choice(kept)
                row = {**old, "output": f"{old['output']} {number}"}
                near += 1
            else:
                row = {
                    "instruction": " ".join(draw.choices(words, k=20)),
                    "output": " ".join(draw.choices(words, k=40)),
                }
                if len(kept) < 10_000:
                    kept.append(row)
            file.write(json.dumps(row) + "\n")
    return exact, near


def memory(process: psutil.Process) -> int:
    total = 0
    for each in [process, *process.children(recursive=True)]:
        try:
            total += each.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--model", help="count tokens by this model's tokenizer")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        data, report = Path(scratch) / "rows.jsonl", Path(scratch) / "report.json"
        exact, near = generate(data, chosen.rows)
        command = [sys.executable, "-m", "luthier.cli.main", "data", "check", str(data), "--json"]
        command += ["--model", chosen.model] if chosen.model else []
        started, peak = time.perf_counter(), 0
        with report.open("w") as out:
            process = psutil.Popen(command, stdout=out)
            while process.poll() is None:
                peak = max(peak, memory(process))
                time.sleep(0.05)
        seconds = time.perf_counter() - started
        if process.returncode not in (0, 1):
            sys.exit(f"the check failed with {process.returncode}")
        counts = {f["id"]: f["count"] for f in json.loads(report.read_text())["findings"]}
    size = "tokens" if chosen.model else "characters"
    print(
        f"{chosen.rows:,} rows in {seconds:.1f} s: {chosen.rows / seconds:,.0f} rows/s "
        f"(lengths in {size}, {psutil.cpu_count()} cores, start-up included), "
        f"peak memory {peak / 2**20:,.0f} MiB"
    )
    print(f"exact duplicates: planted {exact:,}, found {counts.get('exact_duplicates', 0):,}")
    print(f"near duplicates: planted {near:,}, found {counts.get('near_duplicates', 0):,}")


if __name__ == "__main__":
    main()
