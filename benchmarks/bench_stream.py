"""Streaming: memory, bytes written and time to the first step, against preparing all rows before.

    python benchmarks/bench_stream.py [--rows 300000] [--steps 60]

A source of as many rows of some 40 tokens is trained on for some steps of 256 rows, streamed and kept, each
in a process of its own, by a model of one narrow layer with SmolLM2's tokenizer; streamed also a tenth of
the source. Peaks are those of resident memory (VmHWM); what the streaming process shares with the one
that makes its windows counts twice. Bytes written are those of the process (``write_bytes`` of /proc),
the model's and checkpoints' among them.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROWS = 256  # of a step


def write_rows(path: Path, count: int) -> None:
    with path.open("w", encoding="utf-8") as out:
        for number in range(count):
            words = " ".join(f"{(number * 31 + place * place) % 997}" for place in range(8))
            row = {"prompt": f"Add these: {words}?", "completion": f"It is {number % 7919}."}
            out.write(json.dumps(row) + "\n")


def save_model(folder: Path) -> None:
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from luthier.models.pull import pull

    tokenizer = AutoTokenizer.from_pretrained(pull("smollm2-135m").folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=512,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def peak(process: int) -> float:
    """MiB."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def written() -> int:
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("write_bytes"))


class Children(threading.Thread):
    """The highest peak of a child, looked at ten times a second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0.0

    def run(self) -> None:
        while True:
            for child in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
                try:
                    self.peak = max(self.peak, peak(int(child)))
                except (OSError, StopIteration):  # it has ended
                    continue
            time.sleep(0.1)


def measure(folder: Path, source: Path, steps: int, streaming: bool) -> None:
    """The work of one process."""
    from luthier.events import Started
    from luthier.recipe import parse_recipe
    from luthier.run import claim_run
    from luthier.train.fit import fit

    name = f"{source.stem}-{'streamed' if streaming else 'kept'}"
    held_out = ["data.streaming=true"] if streaming else ["data.validation_fraction=0.001"]
    recipe = parse_recipe(
        "", [
            f"model.source={folder / 'model'}", "model.dtype=float32", f"data.train={source}",
            "data.max_length=128", f"train.max_steps={steps}", "train.per_device_train_batch_size=64",
            f"train.gradient_accumulation_steps={ROWS // 64}", "train.eval_steps=1.0",
            "train.save_steps=1.0", "train.report_to=none", "evaluate.probe=false",
            f"run.dir={folder / 'runs'}", f"run.name={name}", *held_out,
        ],
    )  # fmt: skip
    begun, wrote = time.perf_counter(), written()
    first: list[float] = []

    def listen(event: Any) -> None:
        if isinstance(event, Started):
            first.append(time.perf_counter() - begun)

    children = Children()
    children.start()
    run = claim_run(recipe, name)
    measured = fit(recipe, run, listen)
    data = sum(path.stat().st_size for path in (run.root / "data").iterdir())
    found = [first[0], measured.seconds, peak(os.getpid()), children.peak]
    print(json.dumps([*found, (written() - wrote) / 2**20, data / 2**20]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=300_000)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.measure:
        folder, source, how = asked.measure
        measure(Path(folder), Path(source), asked.steps, how == "streamed")
        return
    table = Table(title=f"{asked.steps} steps of {ROWS} rows, {os.cpu_count()} cores")
    names = ("s to step 1", "s of steps", "MiB at the peak", "of the other process")
    for column in ("", "source", *names, "MiB written", "MiB of rows in the run"):
        table.add_column(column, justify="right" if column else "left")
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        save_model(folder / "model")
        for how, rows in (
            ("streamed", asked.rows // 10),
            ("streamed", asked.rows),
            ("kept", asked.rows),
        ):
            source = folder / f"{rows}.jsonl"
            write_rows(source, rows)
            command = [sys.executable, __file__, "--steps", str(asked.steps), "--measure", root]
            done = subprocess.run(
                [*command, str(source), how],
                env={**os.environ, "LUTHIER_CACHE": str(folder / "cache")},
                capture_output=True,
                text=True,
            )
            if done.returncode:
                raise SystemExit(done.stderr)
            figures = json.loads(done.stdout.splitlines()[-1])
            size = f"{rows:,} rows, {source.stat().st_size / 2**20:,.0f} MiB"
            table.add_row(f"{how}", size, *(f"{each:,.1f}" for each in figures))
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
