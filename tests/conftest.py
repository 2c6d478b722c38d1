"""What the tests share. Tiny random models for logic; the real one only where it proves something."""

import os

# Read when Triton is first imported: its kernels run on the CPU, by its interpreter.
os.environ["TRITON_INTERPRET"] = "1"

import atexit
import gc
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from families import save_narrow, save_tiny
from forked import ForkedByEnvironment
from helpers import Cli, Notes, write_rows

from luthier.recipe import Recipe, parse_recipe
from luthier.run import Run, claim_run

# The same arithmetic in every process of the suite, and no fight over two cores.
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["TQDM_DISABLE"] = "1"
# What tests trust is not what the person trusts who runs them.
os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="luthier-state-")
atexit.register(shutil.rmtree, os.environ["XDG_STATE_HOME"], ignore_errors=True)


# Files that take long, the longest first: the last one that is handed out keeps the others waiting.
LONG = (
    *("cli/test_docs", "sweep/test_sweep", "docs/test_pages", "train/test_resume"),
    *("train/test_processes", "cli/test_nproc", "serve/test_command", "board/test_browser"),
    *("compare/test_methods", "board/test_survival", "serve/test_llama_cpp", "faults/test_faults"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole files by how long they take; ``--dist loadscope`` hands them out in this order."""
    order = {f"tests/{name}.py": place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: order.get(item.nodeid.partition("::")[0], len(order)))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a two-layer Llama with a ChatML tokenizer."""
    return save_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def narrow_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder without weights of a model to plan for: the real model's widths, a tenth of its depth."""
    return save_narrow(tmp_path_factory.mktemp("narrow"))


@pytest.fixture(scope="session")
def real_model() -> Path:
    """Folder of the real 135M model, pulled into the user's cache on first use."""
    from luthier.models.pull import pull

    return pull("smollm2-135m").folder


@pytest.fixture(scope="session")
def rows() -> list[dict[str, str]]:
    """Alpaca rows of unequal length."""
    return [
        {
            "instruction": f"Repeat the number {n}, please" + " and then count" * (n % 4),
            "output": " ".join(str(n + i) for i in range(1 + n % 7)),
        }
        for n in range(60)
    ]


@pytest.fixture
def data_file(tmp_path: Path, rows: list[dict[str, str]]) -> Path:
    return write_rows(tmp_path / "rows.jsonl", rows)


@pytest.fixture
def make_recipe(tiny_model: Path, data_file: Path, tmp_path: Path) -> Callable[..., Recipe]:
    """A recipe for the tiny model: ``make_recipe("train.max_steps=3", …)``."""

    def make(*overrides: str) -> Recipe:
        defaults = [
            f"model.source={tiny_model}",
            "model.dtype=float32",
            f"data.train={data_file}",
            "data.max_length=128",
            "train.per_device_train_batch_size=2",
            "train.gradient_accumulation_steps=2",
            "train.max_steps=6",
            "train.eval_steps=3",
            "train.save_steps=3",
            "train.learning_rate=1e-2",
            "evaluate.probe=false",
            f"run.dir={tmp_path / 'runs'}",
            "run.name=run",
        ]
        return parse_recipe("", [*defaults, *overrides])

    return make


@pytest.fixture
def recipe_file(make_recipe: Callable[..., Recipe], tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(make_recipe().to_yaml(), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def cli() -> Iterator[Cli]:
    """Run `luthier ARGS…` as a person would; returns the finished process with its text."""
    by_environment = ForkedByEnvironment()

    def run(*args: str | Path, stdin: str = "", cwd: Path | None = None, **env: str) -> Any:
        given = {**os.environ, "COLUMNS": "100", **env}
        if (forked := by_environment.find(given)) is not None:
            return forked.run([*map(str, args)], stdin, cwd, given)
        return subprocess.run(
            [sys.executable, "-m", "luthier.cli.main", *map(str, args)],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=600,
            cwd=cwd,
            env=given,
        )

    yield run
    by_environment.close()


@pytest.fixture
def train() -> Callable[..., Run]:
    """``train(recipe)``: the finished run; ``notes`` collects what was said."""

    def go(recipe: Recipe, notes: Notes | None = None) -> Run:
        from luthier.train.fit import fit

        run = claim_run(recipe, "test")
        fit(recipe, run, notes or Notes())
        return run

    return go


def pytest_collection_finish() -> None:
    """What is imported by now stays: without it, collecting garbage takes a fraction of the time."""
    gc.collect()
    gc.freeze()
