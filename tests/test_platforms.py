"""Other systems than Linux: what can be known of them here."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from luthier.recipe import Recipe

TESTS = Path(__file__).parent

IMPORT_ALL = """
import importlib, pkgutil, luthier
for module in pkgutil.walk_packages(luthier.__path__, "luthier."):
    importlib.import_module(module.name)
"""

TRAIN = """
import sys
from pathlib import Path
from luthier.recipe import load_recipe
from luthier.run import claim_run
from luthier.train.fit import fit
recipe = load_recipe(Path({path!r}), [])
measured = fit(recipe, claim_run(recipe, "test"))
assert measured.steps == 3 and measured.peak_memory_bytes > 0
"""


def as_on_windows(code: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, TESTS / "without_unix.py", code],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )


def test_every_module_is_imported_without_unix() -> None:
    done = as_on_windows(IMPORT_ALL)
    assert done.returncode == 0, done.stderr


def test_a_run_trains_without_unix(make_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(make_recipe("train.max_steps=3").to_yaml(), encoding="utf-8")
    done = as_on_windows(TRAIN.format(path=str(path)))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "unix",
    [
        "import fcntl",
        "from resource import getrusage",
        "import os; os.sysconf('SC_PAGE_SIZE')",
        "from signal import SIGKILL",
        "import os; os.open('/tmp', os.O_RDONLY)",
    ],
)
def test_planted_use_of_unix_is_found(unix: str) -> None:
    assert as_on_windows(unix).returncode != 0
