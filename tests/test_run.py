from collections.abc import Callable
from pathlib import Path

import pytest

from luthier.errors import UserError
from luthier.recipe import Recipe
from luthier.run import Run, claim_run, open_run, save_recipe

MakeRecipe = Callable[..., Recipe]


def test_checkpoints_are_listed_by_step_and_unfinished_ones_are_not(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for name in ("step-10", "step-9", ".step-11.abc.tmp", "step-x", "other"):
        (run.checkpoints_path / name).mkdir(parents=True)
    (run.checkpoints_path / "step-12").write_text("a file")
    assert list(run.checkpoints()) == [9, 10]


def test_open_run_names_the_runs_that_are_there(tmp_path: Path, make_recipe: MakeRecipe) -> None:
    save_recipe(Run(tmp_path / "first"), make_recipe())
    with pytest.raises(UserError, match="runs there: first"):
        open_run(tmp_path / "second")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="not a run folder"):
        open_run(tmp_path / "empty")


def test_a_run_with_a_checkpoint_keeps_its_settings(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe()
    run = claim_run(recipe, "x")
    save_recipe(run, recipe.with_absolute_paths())
    assert claim_run(make_recipe("train.seed=1"), "x") == run  # nothing trained yet
    run.checkpoint_path(3).mkdir(parents=True)
    assert claim_run(recipe, "x") == run
    with pytest.raises(UserError, match=r"train\.seed: 42 -> 1"):
        claim_run(make_recipe("train.seed=1"), "x")


def test_a_folder_of_other_things_is_never_written_into(
    tmp_path: Path, make_recipe: MakeRecipe
) -> None:
    (tmp_path / "runs" / "run").mkdir(parents=True)
    (tmp_path / "runs" / "run" / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="not a run folder"):
        claim_run(make_recipe(), "x")


def test_one_process_at_a_time(tmp_path: Path) -> None:
    run = Run(tmp_path / "r")
    with (
        run.locked(),
        pytest.raises(UserError, match="another process is working"),
        run.locked(),
    ):
        pass
    with run.locked():  # free again
        pass
    assert list(tmp_path.iterdir()) == []
