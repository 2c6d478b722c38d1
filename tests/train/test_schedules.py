"""The learning rate over the steps is that of Transformers' Trainer with the same arguments."""

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Notes, read_metrics
from torch.optim import SGD
from torch.optim.lr_scheduler import LRScheduler
from transformers import TrainingArguments, get_scheduler
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION

from luthier.errors import UserError
from luthier.recipe import Recipe, parse_recipe
from luthier.recipe.schedules import SCHEDULES
from luthier.run import Run
from luthier.train.optimizers import make_scheduler

STEPS = 20
LEAST = ["model.source=m", "data.train=t", "train.learning_rate=0.5"]
CASES: list[tuple[str, dict[str, Any] | None]] = [
    ("linear", None),
    ("cosine", None),
    ("cosine", {"num_cycles": 1.5}),
    ("constant", None),
    ("constant_with_warmup", None),
    ("polynomial", {"lr_end": 0.01, "power": 2}),
    ("inverse_sqrt", None),
    ("inverse_sqrt", {"timescale": 7}),
    ("cosine_with_restarts", {"num_cycles": 3}),
    ("cosine_with_min_lr", {"min_lr": 0.05}),
    ("cosine_with_min_lr", {"min_lr_rate": 0.1}),
    ("cosine_warmup_with_min_lr", {"min_lr_rate": 0.1, "warmup_lr_rate": 0.2}),
    ("warmup_stable_decay", {"num_decay_steps": 6}),
    ("warmup_stable_decay",
     {"num_decay_steps": 4, "num_stable_steps": 5, "decay_type": "1-sqrt", "min_lr_ratio": 0.1}),
]  # fmt: skip


def rates(scheduler: LRScheduler) -> list[float]:
    found = []
    for _ in range(STEPS):
        found += scheduler.get_last_lr()
        scheduler.optimizer.step()
        scheduler.step()
    return found


def optimizer() -> SGD:
    return SGD([torch.nn.Parameter(torch.ones(1))], lr=0.5)


@pytest.mark.parametrize("warmup", ["warmup_steps=5", "warmup_ratio=0.12", "warmup_steps=0"])
@pytest.mark.parametrize(("name", "arguments"), CASES, ids=lambda v: str(v)[:30])
def test_the_rates_are_those_of_transformers(
    name: str, arguments: dict[str, Any] | None, warmup: str, tmp_path: Path
) -> None:
    if name == "constant" and warmup == "warmup_steps=5":
        pytest.skip("refused: this schedule has no warm-up")
    sets = [*LEAST, f"train.lr_scheduler_type={name}", f"train.{warmup}"]
    recipe = parse_recipe("", [*sets, f"train.lr_scheduler_kwargs={json.dumps(arguments)}"])
    theirs = TrainingArguments(
        output_dir=str(tmp_path),
        lr_scheduler_type=name,
        lr_scheduler_kwargs=arguments,
        warmup_steps=float(warmup.partition("=")[2]),  # a share, where it is below 1
        report_to="none",
    )
    expected = get_scheduler(
        theirs.lr_scheduler_type,
        optimizer(),
        theirs.get_warmup_steps(STEPS),
        STEPS,
        theirs.lr_scheduler_kwargs,
    )
    assert rates(make_scheduler(optimizer(), recipe.train, STEPS)) == rates(expected)


def test_every_schedule_is_known_with_its_arguments() -> None:
    """But for those that follow a measured loss."""
    for kind, function in TYPE_TO_SCHEDULER_FUNCTION.items():
        if kind.value in ("reduce_lr_on_plateau", "greedy"):
            assert kind.value not in SCHEDULES
            continue
        taken = set(inspect.signature(function).parameters)
        taken -= {"optimizer", "num_warmup_steps", "num_training_steps", "last_epoch"}
        assert set(SCHEDULES[kind.value]) == taken, kind


def test_a_run_takes_warmup_steps_and_arguments(
    make_recipe: Callable[..., Recipe], train: Callable[..., Run]
) -> None:
    recipe = make_recipe(
        "train.warmup_steps=2",
        "train.lr_scheduler_type=warmup_stable_decay",
        "train.lr_scheduler_kwargs={num_decay_steps: 2, decay_type: linear}",
    )
    notes = Notes()
    run = train(recipe, notes)
    found = [line["learning_rate"] for line in read_metrics(run) if "learning_rate" in line]
    assert found == pytest.approx([0, 0.005, 0.01, 0.01, 0.01, 0.005])
    assert run.recipe().train.warmup_steps == 2
    assert run.recipe().train.warmup_ratio is None


def test_phases_that_do_not_fit_are_refused_before_the_first_step(
    make_recipe: Callable[..., Recipe], train: Callable[..., Run]
) -> None:
    sets = ["train.lr_scheduler_type=warmup_stable_decay", "train.warmup_steps=3"]
    decay = "train.lr_scheduler_kwargs={num_decay_steps: 9}"
    with pytest.raises(UserError, match=r"more steps \(3 of warm-up, 0 of stable, 9 of decay\)"):
        make_recipe(*sets, decay)
    by_epochs = make_recipe(*sets, decay, "train.max_steps=-1", "train.num_train_epochs=0.2")
    with pytest.raises(UserError, match="warmup_stable_decay has more steps"):
        train(by_epochs)
    with pytest.raises(UserError, match="polynomial has none to decay in"):
        make_recipe("train.lr_scheduler_type=polynomial", "train.warmup_steps=6")
