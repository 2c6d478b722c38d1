"""What the checks that are on in every run cost, on the real model.

    python benchmarks/bench_guards.py [--rows 1000] [--steps 12]

Trains LoRA r=16 on rows of nl2bash with a clock around each check; the share is of the whole run, as
short as it is here: of the checks only those at checkpoints come again in a longer one.
"""

import argparse
import tempfile
import time
from importlib import import_module
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from luthier.recipe import load_recipe
from luthier.run import claim_run
from luthier.train.fit import fit

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared/data/nl2bash.jsonl"
CHECKS = {
    "luthier.train.session": {
        "check_rows": "rows: masks, ends, doubled BOS, leaks",
        "check_embedding": "tokens beyond the embedding",
        "plain_loss": "the base's own loss, the plain way",
        "check_first_loss": "the first loss, training's way",
    },
    "luthier.train.watch": {
        "check_gradients": "gradients of the first step",
        "fingerprint": "hash of frozen weights",
        "highest_rate": "the learning rate is reached",
    },
    "luthier.train.checkpoints": {"check_saved": "nothing missing from a checkpoint"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=12)
    chosen = parser.parse_args()
    spent: dict[str, list[float]] = {}

    def clocked(name: str, check: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            started = time.perf_counter()
            try:
                return check(*arguments, **named)
            finally:
                spent.setdefault(name, []).append(time.perf_counter() - started)

        return call

    for place, names in CHECKS.items():
        module = import_module(place)
        for name, words in names.items():
            setattr(module, name, clocked(words, getattr(module, name)))
    with tempfile.TemporaryDirectory() as folder:
        settings = [
            f"data.train={DATA}", f"data.max_rows={chosen.rows}", f"run.dir={folder}",
            f"train.max_steps={chosen.steps}", "train.eval_rows=50", "evaluate.probe=false",
            "train.save_steps=4", "train.eval_steps=12", "run.name=guards",
        ]  # fmt: skip
        recipe = load_recipe(ROOT / "recipes/lora.yaml", settings)
        run = claim_run(recipe, "guards")
        started = time.perf_counter()
        fit(recipe, run)
        whole = time.perf_counter() - started
    table = Table("check", "times", "ms each", "share of the run")
    for name, times in spent.items():
        each = 1000 * sum(times) / len(times)
        table.add_row(name, str(len(times)), f"{each:.1f}", f"{sum(times) / whole:.2%}")
    table.add_row("all", "", "", f"{sum(map(sum, spent.values())) / whole:.2%}")
    Console(width=110).print(f"{chosen.rows} rows, {chosen.steps} steps, {whole:.0f} s", table)


if __name__ == "__main__":
    main()
