"""Examples a second of LoRA training, against the usual Transformers + PEFT script and TRL.

    python benchmarks/bench_training.py [--data FILE] [--rows 16] [--repeats 2] [--without trl]

Same model (the real 135M one), same rows, same rate, one epoch, four rows a step (TRL packs rows to
1,024 tokens, four or so); all are run in turn, each in a process of its own, and the median of the
repeats counts. Loading is not counted on any side. The loss is that of the answers to rows held
out, of each one's last adapter, by the same code for all: nobody wins by learning less.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer

from luthier.data.prepare import read_for_evaluation, tokenise
from luthier.data.tokens import Tokenizer
from luthier.models.pull import pull
from luthier.objectives.objective import mean_over
from luthier.objectives.sft import SFT
from luthier.recipe import DataGroup

HERE = Path(__file__).parent
HELD_OUT = 32
WHO = (("usual", "float32"), ("luthier", "float32"))
WHO += (("usual", "bfloat16"), ("trl", "bfloat16"), ("luthier", "bfloat16"))


@dataclass(frozen=True)
class Figure:
    """Of one run: examples a second, peak resident bytes, loss on rows held out."""

    speed: float
    peak: int
    loss: float


def run(command: list[str]) -> str:
    env = {**os.environ, "TQDM_DISABLE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
    return done.stdout


def peer(who: str, folder: Path, data: Path, dtype: str, out: Path) -> tuple[float, int]:
    script = str(HERE / "usual_script.py")
    said = run([sys.executable, script, who, str(folder), str(data), dtype, str(out)])
    result = json.loads(said.splitlines()[-1])
    return result["seconds"], result["peak"]


def ours(folder: Path, data: Path, dtype: str, out: Path) -> tuple[float, int]:
    settings = {
        "model.source": folder, "model.dtype": dtype, "data.train": data, "data.max_length": 512,
        "data.validation_fraction": 0, "data.on_too_long": "truncate",
        "train.num_train_epochs": 1, "train.per_device_train_batch_size": 4,
        "train.gradient_accumulation_steps": 1, "train.early_stopping_patience": "null",
        "train.report_to": "[]", "train.lr_scheduler_type": "linear", "train.warmup_ratio": 0,
        "run.dir": out.parent, "run.name": out.name,
    }  # fmt: skip
    sets = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    recipe = str(HERE.parent / "recipes" / "lora.yaml")
    command = [sys.executable, "-m", "luthier.cli.main", "train", recipe, "--json", *sets]
    result: dict[str, Any] = json.loads(run(command))
    return result["tokens"] / result["tokens_per_second"], result["peak_memory_bytes"]


def held_out_loss(folder: Path, adapter: Path, data: Path) -> float:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tuned = PeftModel.from_pretrained(model, str(adapter))
    group = DataGroup(train=str(data), max_length=512, on_too_long="truncate")
    encoder = Tokenizer(AutoTokenizer.from_pretrained(folder), "completions")
    rows = tokenise(read_for_evaluation(str(data), group), group, encoder)
    return mean_over(SFT(), tuned, rows, 8)["loss"]


def measure(who: str, dtype: str, folder: Path, scratch: Path, rows: int, name: str) -> Figure:
    out, data = scratch / name, scratch / "train.jsonl"
    if who == "luthier":
        seconds, peak = ours(folder, data, dtype, out)
        adapter = out / "adapter"
    else:
        seconds, peak = peer(who, folder, data, dtype, out)
        adapter = out
    return Figure(rows / seconds, peak, held_out_loss(folder, adapter, scratch / "held.jsonl"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    shared = HERE.parent.parent / "shared" / "data" / "alpaca_en_demo.jsonl"
    parser.add_argument("--data", type=Path, default=shared, help="rows in Alpaca's format")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--without", action="append", default=[], help="a peer to leave out")
    chosen = parser.parse_args()
    if not chosen.data.is_file():
        sys.exit(f"no data file at {chosen.data}; give one with --data")
    folder = pull("smollm2-135m").folder
    figures: dict[tuple[str, str], list[Figure]] = {}
    with tempfile.TemporaryDirectory() as made:
        scratch = Path(made)
        lines = chosen.data.read_text("utf-8").splitlines()
        (scratch / "train.jsonl").write_text("\n".join(lines[: chosen.rows]) + "\n", "utf-8")
        (scratch / "held.jsonl").write_text("\n".join(lines[-HELD_OUT:]) + "\n", "utf-8")
        for repeat in range(chosen.repeats):
            for who, dtype in WHO:
                if who not in chosen.without:
                    name = f"{who}-{dtype}-{repeat}"
                    found = measure(who, dtype, folder, scratch, chosen.rows, name)
                    figures.setdefault((who, dtype), []).append(found)
    console = Console(width=110)
    console.print(
        f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}; "
        f"{chosen.rows} rows of {chosen.data.name}, LoRA r=16, median of {chosen.repeats}"
    )
    table = Table("", "dtype", "examples/s", "usual float32", "usual same", "peak GiB", "loss")
    speeds = {key: statistics.median(f.speed for f in found) for key, found in figures.items()}
    for (who, dtype), found in figures.items():
        speed = speeds[who, dtype]
        table.add_row(
            who,
            dtype,
            f"{speed:.3f}",
            f"{speed / speeds['usual', 'float32']:.1f}×",
            f"{speed / speeds['usual', dtype]:.1f}×",
            f"{statistics.median(f.peak for f in found) / 2**30:.2f}",
            f"{statistics.median(f.loss for f in found):.4f}",
        )
    console.print(table)


if __name__ == "__main__":
    main()
