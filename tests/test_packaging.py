"""What people install: built as a release is, and run from another folder than this one."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from helpers import write_rows

import luthier

ROOT = Path(__file__).parents[1]
CODE = ROOT / "src" / "luthier"

pytestmark = pytest.mark.packaging


@dataclass
class Built:
    wheel: Path
    sdist: Path
    installed: Path  # a folder with nothing but the wheel

    def luthier(self, *args: str | Path, cwd: Path) -> "subprocess.CompletedProcess[str]":
        """The installed command, in ``cwd``; the libraries are those of this environment."""
        return subprocess.run(
            [sys.executable, self.installed / "bin" / "luthier", *args],
            capture_output=True,
            text=True,
            timeout=300,
            cwd=cwd,
            env={**os.environ, "PYTHONPATH": str(self.installed), "COLUMNS": "100"},
        )


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Source package, the wheel that is made of it, and that wheel installed."""
    folder = tmp_path_factory.mktemp("packaging")
    source = folder / "source"
    left_out = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "src", source / "src", ignore=left_out)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist", source]
    subprocess.run(build, check=True, capture_output=True, timeout=300)
    (wheel,) = (folder / "dist").glob("*.whl")
    (sdist,) = (folder / "dist").glob("*.tar.gz")
    install = ["install", "--quiet", "--no-deps", "--no-index", "--target", folder / "site", wheel]
    subprocess.run([sys.executable, "-m", "pip", *install], check=True, timeout=300)
    return Built(wheel, sdist, folder / "site")


def test_the_wheel_holds_all_that_lies_beside_the_code(built: Built) -> None:
    ours = {
        f"luthier/{path.relative_to(CODE).as_posix()}"
        for path in CODE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    names = set(zipfile.ZipFile(built.wheel).namelist())
    assert ours - names == set()
    assert {name for name in names if not name.startswith("luthier-")} == ours
    for needed in (
        "luthier/py.typed",
        "luthier/compare/base.html.j2",
        "luthier/evaluate/report/page.html.j2",
        "luthier/plan/catalogue/hardware.yaml",
        "luthier/recipe/recipe.schema.json",
        "luthier/demo/recipe.yaml",
        "luthier/demo/task/train.jsonl",
    ):
        assert needed in names


def test_the_source_package_has_the_licence_and_no_rubbish(built: Built) -> None:
    with tarfile.open(built.sdist) as archive:
        names = [name.partition("/")[2] for name in archive.getnames()]
    assert {"LICENSE", "README.md", "pyproject.toml", "src/luthier/__init__.py"} <= set(names)
    assert [name for name in names if "__pycache__" in name or name.startswith("build/")] == []


def test_metadata_is_what_an_index_takes(built: Built) -> None:
    check = [sys.executable, "-m", "twine", "check", "--strict", built.wheel, built.sdist]
    done = subprocess.run(check, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_installed_command_trains_in_another_folder(
    built: Built, tiny_model: Path, rows: list[dict[str, str]], tmp_path: Path
) -> None:
    version = built.luthier("--version", cwd=tmp_path)
    assert version.stdout.strip() == f"luthier {luthier.__version__}"
    assert "train" in built.luthier("--help", cwd=tmp_path).stdout
    write_rows(tmp_path / "rows.jsonl", rows)
    (tmp_path / "recipe.yaml").write_text(
        f"model: {{source: {tiny_model}, dtype: float32}}\n"
        "data: {train: rows.jsonl, max_length: 128}\n"
        "train: {max_steps: 2}\n"
        "run: {name: first}\n",
        encoding="utf-8",
    )
    trained = built.luthier("train", "recipe.yaml", cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    run = tmp_path / "runs" / "first"
    assert (run / "adapter" / "adapter_model.safetensors").is_file()
    answered = built.luthier(
        "generate", run, "--prompt", "Repeat 3", "--max-new-tokens", "4", cwd=tmp_path
    )
    assert answered.returncode == 0, answered.stderr
    planned = built.luthier("plan", "recipe.yaml", cwd=tmp_path)  # reads the catalogues
    assert planned.returncode == 0, planned.stderr


def test_it_is_the_installed_code_that_runs(built: Built, tmp_path: Path) -> None:
    where = subprocess.run(
        [sys.executable, "-c", "import luthier; print(luthier.__file__)"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(built.installed)},
    )
    assert Path(where.stdout.strip()) == built.installed / "luthier" / "__init__.py"
