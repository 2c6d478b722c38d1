"""One epoch by the fast paths and one by their references: the same adapter quality, in what time.

    python benchmarks/bench_epoch.py [--rows 1000]

The same recipe, rows, order and seed for both, LoRA r=16; the loss and the exact matches (spacing
aside) are on rows of the same file that neither saw.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from luthier.data.prepare import held_out, tokenise
from luthier.data.tokens import Tokenizer
from luthier.evaluate.statistics import mean_interval
from luthier.generate.answer import Sampling, answer_all
from luthier.models.tuned import load_tuned
from luthier.objectives.objective import mean_over
from luthier.objectives.sft import SFT
from luthier.run import Run, open_run

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared/data/nl2bash.jsonl"
KERNELS = ("loss", "lora", "attention", "norm", "gated", "rotary")
ANSWERED, NEW = 200, 64


def train(folder: Path, name: str, rows: int, more: list[str]) -> Run:
    """``rows`` rows to learn from and 300 held out, whichever way."""
    settings = [
        f"data.train={DATA}", f"data.max_rows={rows + 300}",
        f"data.validation_fraction={300 / (rows + 300)}", "data.max_length=512",
        "train.num_train_epochs=1", "train.eval_rows=50", "train.eval_steps=1000", "train.seed=1",
        "train.early_stopping_patience=null", "evaluate.probe=false", f"run.dir={folder}",
        f"run.name={name}", *more,
    ]  # fmt: skip
    sets = [part for setting in settings for part in ("--set", setting)]
    command = [sys.executable, "-m", "luthier.cli.main", "train", str(ROOT / "recipes/lora.yaml")]
    done = subprocess.run([*command, *sets], cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(done.stderr)
    return open_run(folder / name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1000)
    rows = parser.parse_args().rows
    ways: dict[str, list[str]] = {
        "fast": [],
        "reference": [f"kernels.{name}=false" for name in KERNELS],
    }
    table = Table("", "rows", "minutes", "tok/s", "training loss", "validation loss", "exact match")
    for name, more in ways.items():
        with tempfile.TemporaryDirectory() as scratch:
            run = train(Path(scratch), name, rows, more)
            recipe, models = run.recipe(), load_tuned(run)
            held = held_out(run)
            tokens = tokenise(held, recipe.data, Tokenizer(models.tokenizer, "completions"))
            loss = mean_over(SFT(), models.tuned, tokens, 8)["loss"]
            asked = held[:ANSWERED]
            prompts = [row.prompt for row in asked]
            answers = answer_all(models.tuned, models.tokenizer, prompts, Sampling(NEW), 20)
            right = [
                float(answer.split() == row.reference.split())
                for answer, row in zip(answers, asked, strict=True)
            ]
            found = mean_interval(right)
            measured = json.loads(run.measured_path.read_text())
            lines = map(json.loads, run.metrics_path.read_text().splitlines())
            losses = [line["loss"] for line in lines if "loss" in line]
            table.add_row(
                name,
                str(rows),
                f"{measured['tokens'] / measured['tokens_per_second'] / 60:.1f}",
                f"{measured['tokens_per_second']:.0f}",
                f"{sum(losses) / len(losses):.4f}",
                f"{loss:.4f}",
                f"{found.mean:.1%} [{found.low:.1%}, {found.high:.1%}]",
            )
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
