"""A step whose loss or gradient is no number changes nothing; many of them end the run."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Notes, read_metrics

from luthier.errors import UserError
from luthier.objectives.sft import SFT
from luthier.recipe import Recipe
from luthier.run import Run, claim_run
from luthier.train import loop, watch
from luthier.train.figures import StepResult
from luthier.train.skips import Skips

MakeRecipe = Callable[..., Recipe]
Train = Callable[..., Run]


def plant(monkeypatch: pytest.MonkeyPatch, steps: set[int]) -> None:
    """The loss of these steps (from 1) is non-finite."""
    real_step, real_loss = loop.train_step, SFT.loss
    taken = 0

    def step(learner: Any, *args: Any) -> StepResult:
        nonlocal taken
        taken = learner.scheduler.last_epoch + 1
        return real_step(learner, *args)

    def loss(self: SFT, model: Any, batch: Any) -> Any:
        found, parts = real_loss(self, model, batch)
        return (found * math.nan if taken in steps and torch.is_grad_enabled() else found), parts

    monkeypatch.setattr(loop, "train_step", step)
    monkeypatch.setattr(SFT, "loss", loss)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_skipped_step_changes_no_weight(
    method: str, make_recipe: MakeRecipe, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch, {4})
    after: dict[int, list[torch.Tensor]] = {}
    real = loop.train_step

    def look(learner: Any, *args: Any) -> StepResult:
        result = real(learner, *args)
        trained = [p.detach().clone() for p in learner.model.parameters() if p.requires_grad]
        after[len(after) + 1] = trained
        return result

    monkeypatch.setattr(loop, "train_step", look)
    notes = Notes()
    run = train(make_recipe(f"method.name={method}", "train.weight_decay=0.1"), notes)
    assert all(map(torch.equal, after[3], after[4]))
    assert not all(map(torch.equal, after[4], after[5]))
    lines = read_metrics(run)
    skipped = [line for line in lines if "skipped" in line]
    assert [(line["step"], line["skipped"], "loss" in line) for line in skipped] == [(4, 1, False)]
    assert any("skipped" in text for text in notes.warnings)
    # Every line is JSON that others can read, too.
    for text in run.metrics_path.read_text().splitlines():
        json.loads(text, parse_constant=pytest.fail)


def test_gradients_are_looked_at_in_the_first_step_that_counts(
    make_recipe: MakeRecipe, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch, {1})
    looked: list[int] = []
    monkeypatch.setattr(watch, "check_gradients", lambda *_: looked.append(1))
    notes = Notes()
    assert train(make_recipe(), notes).finished
    assert looked == [1]
    plant(monkeypatch, {1, 2, 3})
    with pytest.raises(UserError, match="diverged at step 3"):
        train(make_recipe("run.name=never"))
    assert looked == [1]


def test_what_is_due_at_such_a_step_waits_for_one_that_counts(
    make_recipe: MakeRecipe, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch, {3, 6, 7})
    run = train(
        make_recipe("train.max_steps=9", "train.save_steps=3", "train.eval_steps=3",
                    "train.logging_steps=9", "train.save_total_limit=9")
    )  # fmt: skip
    assert list(run.checkpoints()) == [4, 8, 9]
    lines = read_metrics(run)
    assert [line["step"] for line in lines if "eval_loss" in line] == [4, 8, 9]
    # A checkpoint holds no loss that was not logged.
    assert {4, 8, 9} <= {line["step"] for line in lines if "loss" in line}


def test_the_mean_is_over_the_steps_that_counted(
    make_recipe: MakeRecipe, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch, {2})
    common = ("train.max_steps=3", "train.eval_steps=3")
    each = train(make_recipe(*common, "run.name=each"))
    window = train(make_recipe(*common, "train.logging_steps=3", "run.name=window"))
    losses = [line["loss"] for line in read_metrics(each) if "loss" in line]
    (line,) = [line for line in read_metrics(window) if "loss" in line]
    assert len(losses) == 2
    assert line["loss"] == pytest.approx(sum(losses) / 2)
    assert line["skipped"] == 1


def test_three_in_a_row_stop_the_run_and_show_the_rows(
    make_recipe: MakeRecipe, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch, {2, 4, 5, 6})
    recipe = make_recipe("train.max_steps=12")
    with pytest.raises(UserError, match=r"diverged at step 6: loss nan.*bad-batch\.json"):
        train(recipe)
    run = claim_run(recipe, "x")
    batch = json.loads(run.bad_batch_path.read_text())
    assert batch["step"] == 6
    assert len(batch["rows"]) == 4
    for row in batch["rows"]:
        assert row["origin"][0].endswith("rows.jsonl")
        assert row["messages"][-1]["role"] == "assistant"
        assert row["input_ids"]
    assert max(run.checkpoints()) == 3  # what was saved before stays


def test_scattered_ones_are_bounded_too(tmp_path: Path) -> None:
    skips = Skips(Run(tmp_path), list, 1e-4)
    for step in range(1, 30):
        skips.take(step % 2 == 0)
        if step % 2 == 0:
            assert skips.too_many(100) == (step // 2 > 10)
            assert not skips.too_many(10_000)
