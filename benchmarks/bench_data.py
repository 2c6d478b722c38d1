"""Preparing data: rows a second and resident memory, from the file to the first batches.

    python benchmarks/bench_data.py [--rows 20000] [--model smollm2-135m] [--data alpaca.jsonl]

Rows of one question and one answer of some 300 tokens, each different, are prepared in processes of
their own: encoded alone (row by row in one of them, for the ratio), prepared and kept in a run folder,
prepared once more with warm caches, loaded again as a resumed run does, and batched as a step of
training takes them. Peaks are those of resident memory (VmHWM), the process without data included;
the workers that tokenise are processes of their own, each of less.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

WORDS = (
    "the model reads a table of numbers and writes what each of them means to people who never saw it "
    "before, because 42 rows of 1,024 values say little without their units, sources and dates"
)


@dataclass(frozen=True)
class Case:
    """What a measuring process works on."""

    file: Path
    model: str
    folder: Path
    rows: int


def write_rows(path: Path, count: int, real: Path | None) -> None:
    lines = real.read_text("utf-8").splitlines() if real is not None else []
    texts = [json.loads(line) for line in lines]
    vocabulary = WORDS.split()
    with path.open("w", encoding="utf-8") as out:
        for number in range(count):
            if texts:
                row = {**texts[number % len(texts)], "id": number}
                row["instruction"] = f"{row['instruction']} ({number})"
            else:
                words = [vocabulary[(number * 7 + i * i) % len(vocabulary)] for i in range(225)]
                row = {
                    "instruction": f"Question {number}: {' '.join(words[:60])}?",
                    "output": f"{' '.join(words[60:])} {number}.",
                }
            out.write(json.dumps(row) + "\n")


def resident_mib() -> tuple[float, float]:
    """Resident memory now and at its peak."""
    status = Path("/proc/self/status").read_text().splitlines()
    found = {name: line for line in status for name in [line.split(":")[0]]}
    now, peak = (int(found[name].split()[1]) / 1024 for name in ("VmRSS", "VmHWM"))
    return now, peak


def prepared_of(case: Case) -> Any:
    from luthier.models.source import resolve
    from luthier.recipe import parse_recipe
    from luthier.train.setup import load_prepared_tokenizer

    recipe = parse_recipe(
        "", [
            f"model.source={case.model}", f"data.train={case.file}", "data.validation_fraction=0.01",
            f"run.dir={case.folder}", "run.name=run",
        ],
    )  # fmt: skip
    folder = resolve(case.model, None).folder
    return recipe, load_prepared_tokenizer(recipe, folder).tokenizer


def conversations(case: Case) -> Iterator[Any]:
    from luthier.data.readers import read_rows
    from luthier.data.rows import read_row

    for item in read_rows(str(case.file)):
        if isinstance(item, tuple):
            yield read_row(item[1], item[0])[1]


def encode(case: Case, together: bool) -> int:
    from luthier.data.token_cache import encode_all
    from luthier.data.tokens import Tokenizer

    recipe, tokenizer = prepared_of(case)
    rows = list(islice(conversations(case), 20_000 if together else 1_000))
    encoder = Tokenizer(tokenizer, recipe.data.train_on, recipe.data.history)
    encoder.encode(rows[0])
    start_clock()
    if together:
        return len(encode_all(encoder, rows, keep=False))
    return sum(len(encoder.encode(row)) for row in rows)


def prepare(case: Case, keep: bool) -> int:
    from luthier.data.prepare import prepare, store
    from luthier.run import Run

    recipe, tokenizer = prepared_of(case)
    start_clock()
    prepared = prepare(recipe, tokenizer)
    if keep:
        store(prepared, Run(case.folder / "run"))
    return len(prepared.train) + len(prepared.validation)


def load(case: Case, batches: bool) -> int:
    from luthier.data.batches import RowDataset, StepBatches, collate
    from luthier.data.prepare import load_stored
    from luthier.run import Run

    recipe, tokenizer = prepared_of(case)
    start_clock()
    prepared = load_stored(recipe.data, tokenizer, Run(case.folder / "run"))
    if not batches:
        return len(prepared.train) + len(prepared.validation)
    steps = StepBatches(RowDataset(prepared.train, 1024, False), 8, 4, 42, collate)
    start_clock()
    return sum(len(batch.row_lengths) for step in steps.epoch(0) for batch in step)


CASES: dict[str, Callable[[Case], int]] = {
    "tokenised one by one": lambda case: encode(case, False),
    "tokenised on all cores": lambda case: encode(case, True),
    "prepared and kept": lambda case: prepare(case, True),
    "prepared again": lambda case: prepare(case, False),
    "loaded by a resumed run": lambda case: load(case, False),
    "collated for an epoch": lambda case: load(case, True),
}

_clock = time.perf_counter()


def start_clock() -> None:
    global _clock
    _clock = time.perf_counter()


def measure(name: str, case: Case) -> None:
    """The work of one process: prints rows, seconds, and MiB before and at the peak."""
    import torch  # noqa: F401
    import transformers  # noqa: F401

    import luthier.data.prepare  # noqa: F401

    before, _ = resident_mib()
    rows = CASES[name](case)
    print(json.dumps([rows, time.perf_counter() - _clock, before, resident_mib()[1]]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument(
        "--data", type=Path, help="Alpaca rows (JSON lines) to repeat in place of ours"
    )
    parser.add_argument("--only", help="names of cases, separated by commas")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.measure:
        name, folder = asked.measure
        path = Path(folder)
        measure(name, Case(path / "rows.jsonl", asked.model, path, asked.rows))
        return
    console = Console()
    table = Table(title=f"{asked.rows:,} rows, {asked.model}, {os.cpu_count()} cores")
    for column in ("", "rows", "seconds", "rows/s", "MiB before", "MiB at the peak"):
        table.add_column(column, justify="right" if column else "left")
    with tempfile.TemporaryDirectory() as folder:
        write_rows(Path(folder) / "rows.jsonl", asked.rows, asked.data)
        size = (Path(folder) / "rows.jsonl").stat().st_size
        for name in asked.only.split(",") if asked.only else CASES:
            command = [sys.executable, __file__, "--model", asked.model, "--measure", name, folder]
            environment = {**os.environ, "LUTHIER_CACHE": f"{folder}/cache"}
            link = Path(folder) / "cache"
            if not link.exists():
                link.mkdir()
                (link / "models").symlink_to(models_folder())
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(done.stderr)
            rows, seconds, before, peak = json.loads(done.stdout.splitlines()[-1])
            table.add_row(
                name, f"{rows:,}", f"{seconds:,.2f}", f"{rows / seconds:,.0f}", f"{before:,.0f}",
                f"{peak:,.0f}",
            )  # fmt: skip
            console.print(f"{name}: {seconds:.1f} s")
    console.print(table)
    console.print(f"the source has {size / 2**20:,.0f} MiB")


def models_folder() -> Path:
    from luthier.models.pull import cache_folder

    return cache_folder()


if __name__ == "__main__":
    main()
