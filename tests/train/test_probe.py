"""The probe while training: its curve, that it disturbs nothing, and stopping on forgetting."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import read_metrics
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from luthier.errors import UserError
from luthier.evaluate.probe.quick import QuickProbe
from luthier.recipe import Recipe
from luthier.records import Measured
from luthier.run import Run, claim_run
from luthier.train.fit import fit

MakeRecipe = Callable[..., Recipe]


def train(recipe: Recipe, probe: Any) -> tuple[Run, Measured]:
    run = claim_run(recipe, "x")
    return run, fit(recipe, run, probe=probe)


class Falls:
    """Accuracy 0.8, 0.7, 0.6 … at each call."""

    def __init__(self, *, calls: int = 0) -> None:
        self.calls = calls

    def __call__(self, model: Any, tokenizer: Any) -> dict[str, float]:
        self.calls += 1
        return {"probe_accuracy": 0.9 - 0.1 * self.calls, "probe_loss": float(self.calls)}


def test_a_probe_leaves_the_weights_as_they_would_be(make_recipe: MakeRecipe) -> None:
    without, _ = train(make_recipe("run.name=without"), None)
    with_it, _ = train(make_recipe("run.name=with"), QuickProbe())
    one, other = (
        load_file(r.adapter_path / "adapter_model.safetensors") for r in (without, with_it)
    )
    assert all(torch.equal(one[name], other[name]) for name in one)
    lines = read_metrics(with_it)
    probed = [line for line in lines if "eval_probe_accuracy" in line]
    assert [line["step"] for line in probed] == [0, 3, 6]
    assert "eval_loss" not in probed[0]  # before the first step: the probe alone
    assert all(0 <= line["eval_probe_accuracy"] <= 1 for line in probed)
    assert all(line["eval_probe_loss"] > 0 for line in probed)
    events = EventAccumulator(str(with_it.tensorboard_path)).Reload()
    drawn = [(e.step, round(e.value, 5)) for e in events.Scalars("eval/probe_accuracy")]
    assert drawn == [(x["step"], round(x["eval_probe_accuracy"], 5)) for x in probed]


def test_the_quick_probe_puts_the_model_back(tiny_model: Any) -> None:
    from luthier.models.load import load_model, load_tokenizer

    model = load_model(tiny_model, torch.float32).train()
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    probe, tokenizer = QuickProbe(), load_tokenizer(tiny_model)
    first = probe(model, tokenizer)
    assert model.training
    assert torch.equal(torch.rand(1), expected)
    assert probe(model, tokenizer) == first
    assert len({item.area for item in probe.items}) == 6


def test_stops_on_forgetting_and_keeps_what_had_not_forgotten(make_recipe: MakeRecipe) -> None:
    """0.8 at the start, 0.7 at step 1, 0.6 at step 2: more than 0.15 lost."""
    recipe = make_recipe(
        "train.eval_steps=1", "train.stop_on_forgetting=0.15", "evaluate.probe=true"
    )
    run, measured = train(recipe, Falls())
    assert (measured.steps, measured.forgot, measured.stopped_early) == (2, True, True)
    assert measured.best_step == 1
    again = fit(recipe, run, probe=Falls())
    assert again == measured


def test_a_run_cut_off_stops_where_it_would_have(make_recipe: MakeRecipe) -> None:
    """The accuracy before the first step travels in the checkpoint."""
    sets = (
        "train.eval_steps=1",
        "train.save_steps=1",
        "train.stop_on_forgetting=0.25",
        "evaluate.probe=true",
    )
    whole, _ = train(make_recipe(*sets, "run.name=whole"), Falls())
    recipe = make_recipe(*sets, "run.name=cut")
    run = claim_run(recipe, "x")

    class Cut(Falls):
        def __call__(self, model: Any, tokenizer: Any) -> dict[str, float]:
            if self.calls == 2:  # in the evaluation of step 2
                raise KeyboardInterrupt
            return super().__call__(model, tokenizer)

    with pytest.raises(KeyboardInterrupt):
        fit(recipe, run, probe=Cut())
    # It goes on from step 1, after two measurements.
    fit(recipe, run, probe=Falls(calls=2))
    assert run.measured().steps == whole.measured().steps == 3
    curves = [
        [(x["step"], x["eval_probe_accuracy"]) for x in read_metrics(r) if "eval_probe_loss" in x]
        for r in (whole, run)
    ]
    assert curves[0] == curves[1]


def test_forgetting_at_once_keeps_the_last_step(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(
        "train.eval_steps=2", "train.stop_on_forgetting=0.05", "evaluate.probe=true"
    )
    run, measured = train(recipe, Falls())
    assert (measured.steps, measured.best_step, measured.best_eval_loss) == (2, 2, None)
    assert run.adapter_path.is_dir()


def test_stopping_needs_what_it_stops_on(make_recipe: MakeRecipe) -> None:
    with pytest.raises(UserError, match=r"needs evaluate\.probe"):
        make_recipe("train.stop_on_forgetting=0.1", "evaluate.probe=false")
    with pytest.raises(UserError, match="needs a validation set"):
        make_recipe(
            "train.stop_on_forgetting=0.1", "evaluate.probe=true", "data.validation_fraction=0"
        )
