"""Examples a second of LoRA training, against the usual Transformers + PEFT script.

    python benchmarks/bench_training.py [--data FILE] [--rows 16] [--repeats 2]

Same model (the real 135M one), same rows, same batch size, one epoch; the two are run in turn, each
in a process of its own, and the median of the repeats counts. Loading is not counted on either side.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from luthier.models.pull import pull

HERE = Path(__file__).parent
BATCH = 4


def run(command: list[str]) -> str:
    env = {**os.environ, "TQDM_DISABLE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
    return done.stdout


def usual(folder: Path, data: Path, dtype: str) -> float:
    script = str(HERE / "usual_script.py")
    said = run([sys.executable, script, str(folder), str(data), dtype, str(BATCH)])
    result = json.loads(said.splitlines()[-1])
    return float(result["rows"] / result["seconds"])


def ours(folder: Path, data: Path, dtype: str, runs: Path, name: str) -> float:
    rows = len(data.read_text("utf-8").splitlines())
    settings = {
        "model.source": folder, "model.dtype": dtype, "data.train": data, "data.max_length": 512,
        "data.validation_fraction": 0, "data.on_too_long": "truncate",
        "train.num_train_epochs": 1, "train.per_device_train_batch_size": BATCH,
        "train.gradient_accumulation_steps": 1, "train.early_stopping_patience": "null",
        "train.report_to": "[]", "run.dir": runs, "run.name": name,
    }  # fmt: skip
    sets = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    recipe = str(HERE.parent / "recipes" / "lora.yaml")
    command = [sys.executable, "-m", "luthier.cli.main", "train", recipe, "--json", *sets]
    result: dict[str, Any] = json.loads(run(command))
    return rows / (result["tokens"] / result["tokens_per_second"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    shared = HERE.parent.parent / "shared" / "data" / "alpaca_en_demo.jsonl"
    parser.add_argument("--data", type=Path, default=shared, help="rows in Alpaca's format")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=2)
    chosen = parser.parse_args()
    if not chosen.data.is_file():
        sys.exit(f"no data file at {chosen.data}; give one with --data")
    folder = pull("smollm2-135m").folder
    dtypes = ("float32", "bfloat16")
    figures: dict[tuple[str, str], list[float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "rows.jsonl"
        rows = chosen.data.read_text("utf-8").splitlines()[: chosen.rows]
        data.write_text("\n".join(rows) + "\n", "utf-8")
        for repeat in range(chosen.repeats):
            for dtype in dtypes:
                name = f"{dtype}-{repeat}"
                figures.setdefault(("usual script", dtype), []).append(usual(folder, data, dtype))
                figures.setdefault(("luthier", dtype), []).append(
                    ours(folder, data, dtype, Path(scratch), name)
                )
    medians = {key: statistics.median(values) for key, values in figures.items()}
    console = Console(width=100)
    console.print(
        f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}; "
        f"{chosen.rows} rows of {chosen.data.name}, LoRA r=16, batch {BATCH}, "
        f"median of {chosen.repeats}"
    )
    table = Table("", "dtype", "examples/s", "against the usual script")
    for (who, dtype), value in medians.items():
        ratio = value / medians["usual script", dtype]
        table.add_row(who, dtype, f"{value:.3f}", f"{ratio:.1f}×")
    console.print(table)


if __name__ == "__main__":
    main()
