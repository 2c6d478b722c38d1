from collections.abc import Callable
from pathlib import Path

import pytest

from luthier.errors import UserError
from luthier.files import write_jsonl
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


def test_a_process_killed_while_it_made_the_folder_is_no_obstacle(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe()
    run = claim_run(recipe, "x")
    run.root.mkdir(parents=True)
    (run.root / ".recipe.yaml.0123abcd.tmp").write_text("model:")
    assert claim_run(recipe, "x") == run
    with run.locked():
        assert list(run.root.iterdir()) == []


def test_one_process_at_a_time(tmp_path: Path) -> None:
    run = Run(tmp_path / "r")
    with (
        run.locked(),
        pytest.raises(UserError, match="another process is using"),
        run.locked(),
    ):
        pass
    with run.locked():  # free again
        pass
    assert list(tmp_path.iterdir()) == []


def test_lines_that_a_kill_cut_off_and_lines_that_are_damaged(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert run.metrics() == []
    line = '{"step": %d, "epoch": 0.5, "memory_bytes": 1, "seconds": 1.0, "eval_margin": 0.25}\n'
    run.metrics_path.write_text(line % 1 + line % 2 + '{"step": 3, "ep')
    assert [line.step for line in run.metrics()] == [1, 2]
    assert run.metrics()[0].extra == {"eval_margin": 0.25}
    run.metrics_path.write_text(line % 1 + "oh no\n" + line % 3)
    with pytest.raises(UserError, match=r"metrics\.jsonl:2 is damaged"):
        run.metrics()


def test_answers_with_line_ends_of_other_kinds(tmp_path: Path) -> None:
    run = Run(tmp_path)
    scores: dict[str, dict[str, float]] = {"base": {}, "tuned": {}}
    row = {"row": "f:1", "messages": [], "reference": "a\u2028b", "base": "\x85", "tuned": "c"}
    write_jsonl(run.answered_rows_path, [{**row, "scores": scores}] * 2)
    assert [found.reference for found in run.answered_rows()] == ["a\u2028b"] * 2


def test_what_is_not_there_yet(tmp_path: Path, make_recipe: MakeRecipe) -> None:
    run = Run(tmp_path / "new")
    save_recipe(run, make_recipe())
    assert (run.plan(), run.data_report(), run.evaluation()) == (None, None, None)
    for ask in (run.measured, run.require_finished):
        with pytest.raises(UserError, match="has not finished training; run `luthier train`"):
            ask()
    with pytest.raises(UserError, match=r"provenance\.json is missing"):
        run.provenance()
