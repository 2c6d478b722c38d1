"""A run folder without a model."""

from pathlib import Path

import pytest

from luthier.recipe import Recipe, as_recipe
from luthier.run import Run, save_recipe


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return as_recipe(
        {
            "model": {"source": "smollm2-135m"},
            "data": {"train": "my.jsonl"},
            "train": {"learning_rate": 0.125, "report_to": "none"},
            "run": {"dir": str(tmp_path / "runs"), "name": "first"},
        }
    )


@pytest.fixture
def run(recipe: Recipe) -> Run:
    run = Run(Path(recipe.run.dir) / "first")
    save_recipe(run, recipe)
    return run
