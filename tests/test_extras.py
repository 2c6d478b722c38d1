"""What works without the extras, and the sentence where one is missing."""

import ast
import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from forked import Forked
from helpers import write_rows

import luthier
from luthier.recipe import Recipe

ROOT = Path(luthier.__file__).parent
PROJECT = tomllib.loads((ROOT.parents[1] / "pyproject.toml").read_text("utf-8"))["project"]
# Packages of the extras by the name they are imported by, and what else comes with them.
IMPORTED = {
    "serve": {"fastapi", "llguidance", "prometheus_client", "uvicorn", "starlette"},
    "llama-cpp": {"xllamacpp", "gguf"},
    "board": {"nicegui"},
    "sheets": {"python_calamine"},
    "stream": {"datasets"},
    "rag": {"usearch"},
    "export": {"gguf"},
    "trackers": {"mlflow", "trackio", "wandb", "sqlalchemy", "alembic"},
    "sweep": {"optuna"},
    "ray": {"ray"},
    "judge": {"openai"},
    "lm-eval": {"lm_eval"},
}
OPTIONAL = set().union(*IMPORTED.values())


@pytest.fixture(scope="module")
def without_extras() -> Iterator[Forked]:
    """`luthier` where no extra is installed."""
    forked = Forked(missing=OPTIONAL)
    yield forked
    forked.close()


def needs(path: Path) -> Iterator[tuple[str, set[str]]]:
    """Extra and packages of each call of ``need`` in a module."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "need":
            (extra,) = (word.value for word in node.keywords if word.arg == "extra")
            assert isinstance(extra, ast.Constant)
            names = {arg.value for arg in ast.walk(node) if isinstance(arg, ast.Constant)}
            yield extra.value, names & OPTIONAL


def test_every_extra_of_the_project_is_known_here() -> None:
    extras = set(PROJECT["optional-dependencies"])
    # Triton comes with PyTorch where there is a GPU to use it; its extra is for tests on a CPU.
    assert extras - {"all", "bench", "dev", "docs", "triton"} == set(IMPORTED)
    named = re.search(r"\[(.*)\]", PROJECT["optional-dependencies"]["all"][0])
    assert named is not None
    assert set(named[1].split(",")) == set(IMPORTED)


def test_each_need_names_the_extra_that_installs_its_packages() -> None:
    found = [need for path in ROOT.rglob("*.py") for need in needs(path)]
    assert {extra for extra, _ in found} == set(IMPORTED)
    for extra, packages in found:
        assert packages
        assert packages <= IMPORTED[extra]


def test_the_core_starts_without_the_extras(without_extras: Forked, tmp_path: Path) -> None:
    done = without_extras.run(["--help"], "", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "serve" in done.stdout


def test_training_and_all_that_follows_need_no_extra(
    without_extras: Forked, make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(make_recipe("train.max_steps=2").to_yaml(), encoding="utf-8")
    run = tmp_path / "runs" / "run"
    for args in (
        ["train", str(recipe)],
        ["generate", str(run), "--prompt", "Repeat 3", "--max-new-tokens", "4"],
        ["evaluate", str(run), "--no-probe"],
        ["export", str(run), "--to", "safetensors", "--out", str(tmp_path / "folder")],
    ):
        done = without_extras.run(args, "", tmp_path)
        assert done.returncode == 0, (args, done.stdout, done.stderr)
    done = without_extras.run(["export", str(run), "--to", "gguf"], "", tmp_path)
    assert done.returncode == 2
    assert done.stderr.strip() == (
        "error: luthier export --to gguf needs the extra 'export': pip install 'luthier[export]'"
    )


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (
            ("serve", "runs/first"),
            "luthier serve needs the extra 'serve': pip install 'luthier[serve]'",
        ),
        (
            ("board",),
            "luthier board needs the extra 'board': pip install 'luthier[board]'",
        ),
        (
            ("data", "check", "rows.xlsx"),
            "a .xlsx file as data needs the extra 'sheets': pip install 'luthier[sheets]'",
        ),
        (
            ("sweep", "recipe.yaml"),
            "luthier sweep needs the extra 'sweep': pip install 'luthier[sweep]'",
        ),
        (
            ("rag", "index", "docs", "--out", "docs.index"),
            "retrieval from documents needs the extra 'rag': pip install 'luthier[rag]'",
        ),
        (
            ("train", "recipe.yaml"),
            "a GGUF file as a model needs the extra 'export': pip install 'luthier[export]'",
        ),
    ],
)
def test_a_missing_extra_is_one_sentence(
    args: tuple[str, ...], sentence: str, without_extras: Forked, tmp_path: Path
) -> None:
    (tmp_path / "docs").mkdir()
    write_rows(tmp_path / "docs" / "a.jsonl", [{"text": "a"}])
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    (tmp_path / "rows.xlsx").write_bytes(b"PK")
    recipe = "model: {source: model.gguf}\ndata: {train: docs/a.jsonl}\n"
    (tmp_path / "recipe.yaml").write_text(recipe, encoding="utf-8")
    done = without_extras.run(args, "", tmp_path)
    assert (done.returncode, done.stderr.strip()) == (2, f"error: {sentence}")
