"""Full fine-tuning by each optimiser: loss, peak memory, speed, on the real model.

    python benchmarks/bench_full.py [--steps 30]

The same rows of nl2bash in the same order, four a step, no accumulation and no clipping, so that all
of them can; the losses are means over the last third of the steps, and of 100 rows held out.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared/data/nl2bash.jsonl"
WAYS = {
    "float32, fused AdamW": ["model.dtype=float32"],
    "float32, 8-bit states": ["model.dtype=float32", "train.optim=adamw_8bit"],
    "float32, in the backward": ["model.dtype=float32", "train.optimizer_in_backward=true"],
    "bfloat16 arithmetic, fused AdamW": ["model.dtype=bfloat16"],
    "adamw_bf16": ["train.optim=adamw_bf16"],
    "adamw_bf16, in the backward": ["train.optim=adamw_bf16", "train.optimizer_in_backward=true"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=30)
    steps = parser.parse_args().steps
    table = Table("", "training loss", "validation loss", "planned GiB", "peak GiB", "tok/s")
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, more) in enumerate(WAYS.items()):
            settings = [
                f"data.train={DATA}", "data.max_rows=1000", f"train.max_steps={steps}",
                "train.eval_rows=100", "train.eval_steps=1000", "evaluate.probe=false",
                "train.gradient_accumulation_steps=1", "train.max_grad_norm=0", "train.seed=1",
                "train.early_stopping_patience=null", f"run.dir={folder}", f"run.name=r{number}",
                *more,
            ]  # fmt: skip
            sets = [part for setting in settings for part in ("--set", setting)]
            command = [
                sys.executable,
                "-m",
                "luthier.cli.main",
                "train",
                "recipes/full.yaml",
                *sets,
            ]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
            if done.returncode != 0:
                sys.exit(done.stderr)
            run = Path(folder) / f"r{number}"
            lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
            losses = [line["loss"] for line in lines if "loss" in line][-steps // 3 :]
            held_out = [line["eval_loss"] for line in lines if "eval_loss" in line][-1:]
            measured = json.loads((run / "measured.json").read_text())
            plan = json.loads((run / "plan.json").read_text())
            table.add_row(
                name,
                f"{sum(losses) / len(losses):.4f}",
                *([f"{held_out[0]:.4f}"] if held_out else ["-"]),
                f"{plan['memory']['peak'] / 2**30:.2f}",
                f"{measured['peak_memory_bytes'] / 2**30:.2f}",
                f"{measured['tokens_per_second']:.0f}",
            )
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
