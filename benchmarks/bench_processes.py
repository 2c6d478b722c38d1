"""Tokens per second of 1, 2 and 4 processes by DDP, ZeRO-2 and FSDP2, the cores shared out among them.

    python benchmarks/bench_processes.py [--steps 5]

The same 16 rows a step in all. LoRA on the real 135M model, and full fine-tuning of a random one of 11M; the
median of the steps after the first. Beyond the number of cores more processes cannot be faster: the table then
shows what they cost.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM

from luthier.models.load import load_tokenizer
from luthier.models.pull import pull
from luthier.run import Run

ROOT = Path(__file__).parents[1]
LORA, FULL = "LoRA, 135M", "full, 11M"
RUNS = [(LORA, "ddp", 1), (LORA, "ddp", 2), (FULL, "ddp", 1), (FULL, "ddp", 2), (FULL, "ddp", 4),
        (FULL, "zero2", 2), (FULL, "fsdp2", 2), (FULL, "fsdp2", 4)]  # fmt: skip


def train(folder: Path, source: str, method: str, parallel: str, count: int, steps: int) -> float:
    """Tokens per second."""
    name = f"{method}-{parallel}-{count}"
    settings = [
        f"model.source={source}", "model.dtype=float32", f"data.train={folder / 'rows.jsonl'}",
        f"method.name={method}", "data.max_length=256", "train.eval_rows=4",
        f"train.max_steps={steps}", "train.per_device_train_batch_size=4",
        f"train.gradient_accumulation_steps={4 // count}", f"train.parallel={parallel}",
        "train.save_steps=1.0", "train.report_to=none", "train.compile=never", "evaluate.probe=false",
        f"run.dir={folder}", f"run.name={name}",
    ]  # fmt: skip
    sets = [part for setting in settings for part in ("--set", setting)]
    command = [sys.executable, "-m", "luthier.cli.main", "train", str(ROOT / "recipes/lora.yaml")]
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    done = subprocess.run(
        [*command, *sets, "--nproc", str(count)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=environment,
    )
    if done.returncode != 0:
        sys.exit(done.stderr)
    lines = [json.loads(line) for line in Run(folder / name).metrics_path.open()]
    speeds = [line["tokens_per_second"] for line in lines if "tokens_per_second" in line]
    return statistics.median(speeds[1:])


def small(folder: Path) -> str:
    """A random model of 11 million parameters with the real one's tokenizer."""
    tokenizer = load_tokenizer(pull("smollm2-135m").folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=192, intermediate_size=512, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def write_rows(path: Path) -> None:
    """96 rows of some 200 tokens: equal work in each step."""
    words = ("find all files", "that were changed", "today", "and print", "their names", "by size")
    with path.open("w") as file:
        for number in range(96):
            answer = " ".join(words[(number + i) % len(words)] for i in range(70))
            row = {"instruction": f"Say line {number}", "output": answer}
            file.write(json.dumps(row) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=5)
    steps = parser.parse_args().steps
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        write_rows(folder / "rows.jsonl")
        sources = {LORA: "smollm2-135m", FULL: small(folder / "small")}
        table = Table("", "", "processes", "tokens/s", "ratio")
        alone: dict[str, float] = {}
        for what, parallel, count in RUNS:
            method = what.partition(",")[0].lower()
            speed = train(folder, sources[what], method, parallel, count, steps)
            alone.setdefault(what, speed)
            ratio = f"{speed / alone[what]:.2f}"
            table.add_row(what, parallel if count > 1 else "", str(count), f"{speed:,.0f}", ratio)
            print(f"{what}, {parallel}, {count}: {speed:,.0f} tokens/s", flush=True)
        Console().print(table)


if __name__ == "__main__":
    main()
