"""DPO with LoRA against TRL's DPOTrainer: tokens a second, peak memory, and what both learned.

    python benchmarks/bench_preference.py [--data FILE] [--pairs 16] [--repeats 2] [--dtypes float32,bfloat16]

Same model (the real 135M one), same pairs, same rate, beta 0.1, one epoch, four pairs a step. A pair is
the real answer to a question, and the answer to another question that is nearest to it in length. Both
take turns, each in a process of its own; the median of the repeats counts. Loading and tokenising are
not counted on either side. Tokens are those of both rows of all pairs, without padding, as Luthier counts
them, on both sides. TRL runs as it is fastest here: no recomputation, no dropout.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from luthier.models.pull import pull

HERE = Path(__file__).parent
RATE, LENGTH, BATCH = 1e-4, 512, 4


@dataclass(frozen=True)
class Figure:
    """Of one run: seconds of training, peak resident bytes, tokens, losses of the first and last steps."""

    seconds: float
    peak: int
    tokens: int | None
    first: float
    last: float


def make_pairs(data: Path, count: int) -> list[dict[str, str]]:
    """Questions with their own answers, and with those of other questions nearest in length."""
    rows = [json.loads(line) for line in data.read_text("utf-8").splitlines()]
    rows = [row for row in rows if 20 <= len(row["output"]) <= 1200]
    by_length = sorted(rows, key=lambda row: len(row["output"]))
    pairs = []
    for here, other in zip(by_length[::2], by_length[1::2], strict=False):
        for row, wrong in ((here, other), (other, here)):
            prompt = "\n\n".join(filter(None, [row["instruction"], row.get("input")]))
            pairs.append({"prompt": prompt, "chosen": row["output"], "rejected": wrong["output"]})
    step = max(1, len(pairs) // count)  # over all lengths
    return pairs[::step][:count]


def trl_side(folder: Path, data: Path, dtype: str) -> None:
    """Train by TRL, and print a line of JSON."""
    from datasets import Dataset
    from peft import LoraConfig
    from trl import DPOConfig, DPOTrainer

    def turn(role: str, text: str) -> list[dict[str, str]]:
        return [{"role": role, "content": text}]

    rows = [json.loads(line) for line in data.read_text("utf-8").splitlines()]
    chats = [
        {
            "prompt": turn("user", row["prompt"]),
            "chosen": turn("assistant", row["chosen"]),
            "rejected": turn("assistant", row["rejected"]),
        }
        for row in rows
    ]
    torch.manual_seed(0)
    trainer = DPOTrainer(
        str(folder),
        args=DPOConfig(
            output_dir="unused", beta=0.1, max_length=LENGTH, learning_rate=RATE,
            per_device_train_batch_size=BATCH, gradient_accumulation_steps=1, num_train_epochs=1,
            lr_scheduler_type="linear", warmup_steps=0, max_grad_norm=1.0, optim="adamw_torch_fused",
            weight_decay=0.0, logging_steps=1, save_strategy="no", report_to="none", use_cpu=True,
            bf16=dtype == "bfloat16", gradient_checkpointing=False, seed=0,
            model_init_kwargs={"dtype": dtype},
        ),
        train_dataset=Dataset.from_list(chats),
        peft_config=LoraConfig(
            r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
    )  # fmt: skip
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": seconds, "peak": peak, "first": losses[0], "last": losses[-1]}))


def run(command: list[str]) -> str:
    env = {**os.environ, "TQDM_DISABLE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
    return done.stdout


def ours(folder: Path, data: Path, dtype: str, out: Path) -> Figure:
    settings = {
        "model.source": folder, "model.dtype": dtype, "data.train": data, "data.max_length": LENGTH,
        "data.validation_fraction": 0, "data.on_too_long": "truncate", "objective.beta": 0.1,
        "train.num_train_epochs": 1, "train.per_device_train_batch_size": BATCH,
        "train.gradient_accumulation_steps": 1, "train.learning_rate": RATE,
        "train.report_to": "[]", "train.lr_scheduler_type": "linear", "train.warmup_ratio": 0,
        "train.early_stopping_patience": "null", "evaluate.probe": "false",
        "run.dir": out.parent, "run.name": out.name,
    }  # fmt: skip
    sets = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    recipe = str(HERE.parent / "recipes" / "dpo.yaml")
    command = [sys.executable, "-m", "luthier.cli.main", "train", recipe, "--json", *sets]
    told: dict[str, Any] = json.loads(run(command))
    lines = (out / "metrics.jsonl").read_text("utf-8").splitlines()
    losses = [json.loads(line)["loss"] for line in lines if '"loss"' in line]
    seconds = told["tokens"] / told["tokens_per_second"]
    return Figure(seconds, told["peak_memory_bytes"], told["tokens"], losses[0], losses[-1])


def theirs(folder: Path, data: Path, dtype: str) -> Figure:
    said = run([sys.executable, __file__, "--trl", str(folder), str(data), dtype])
    told = json.loads(said.splitlines()[-1])  # its trainer prints its own log before
    return Figure(told["seconds"], told["peak"], None, told["first"], told["last"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    shared = HERE.parent.parent / "shared" / "data" / "alpaca_en_demo.jsonl"
    parser.add_argument("--data", type=Path, default=shared, help="rows in Alpaca's format")
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--model", type=Path, help="a model's folder instead of the real 135M one")
    parser.add_argument(
        "--trl", nargs=3, metavar=("MODEL", "PAIRS", "DTYPE"), help="the peer alone"
    )
    chosen = parser.parse_args()
    if chosen.trl:
        trl_side(Path(chosen.trl[0]), Path(chosen.trl[1]), chosen.trl[2])
        return
    if not chosen.data.is_file():
        sys.exit(f"no data file at {chosen.data}; give one with --data")
    folder = chosen.model or pull("smollm2-135m").folder
    figures: dict[tuple[str, str], list[Figure]] = {}
    with tempfile.TemporaryDirectory() as made:
        data = Path(made) / "pairs.jsonl"
        pairs = make_pairs(chosen.data, chosen.pairs)
        data.write_text("".join(json.dumps(pair) + "\n" for pair in pairs), "utf-8")
        for repeat in range(chosen.repeats):
            for dtype in chosen.dtypes.split(","):
                found = ours(folder, data, dtype, Path(made) / f"{dtype}-{repeat}")
                figures.setdefault(("luthier", dtype), []).append(found)
                figures.setdefault(("trl", dtype), []).append(theirs(folder, data, dtype))
    console = Console(width=110)
    console.print(
        f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}; "
        f"{len(pairs)} pairs of {chosen.data.name}, DPO, LoRA r=16, median of {chosen.repeats}"
    )
    table = Table("", "dtype", "tokens/s", "TRL's", "peak GiB", "TRL's", "first loss", "last loss")
    for (who, dtype), found in figures.items():
        tokens = figures["luthier", dtype][0].tokens or 0
        peer = figures["trl", dtype]
        seconds, peak = (
            statistics.median(getattr(f, key) for f in found) for key in ("seconds", "peak")
        )
        table.add_row(
            who,
            dtype,
            f"{tokens / seconds:.0f}",
            f"{statistics.median(f.seconds for f in peer) / seconds:.2f}×",
            f"{peak / 2**30:.2f}",
            f"{peak / statistics.median(f.peak for f in peer):.0%}",
            f"{found[0].first:.4f}",
            f"{found[0].last:.4f}",
        )
    console.print(table)


if __name__ == "__main__":
    main()
