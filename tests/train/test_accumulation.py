"""Gradient accumulation is exact: how a step is cut into micro-batches changes nothing."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from luthier.data.batches import Batch
from luthier.recipe import Recipe
from luthier.run import claim_run
from luthier.train import loop
from luthier.train.figures import StepResult
from luthier.train.fit import fit

MakeRecipe = Callable[..., Recipe]


@pytest.fixture
def step_gradients(monkeypatch: pytest.MonkeyPatch) -> Callable[[Recipe], dict[str, Tensor]]:
    """The gradients that the optimiser was given in the first step of a real run."""

    real = loop.train_step

    def get(recipe: Recipe) -> dict[str, Tensor]:
        kept: dict[str, Tensor] = {}

        def spy(learner: loop.Learner, batches: Sequence[Batch], *_: Any) -> StepResult:
            def keep() -> None:
                for name, p in learner.model.named_parameters():
                    if p.grad is not None:
                        kept[name] = p.grad.detach().clone()

            return real(learner, batches, None if kept else keep)

        monkeypatch.setattr(loop, "train_step", spy)
        fit(recipe, claim_run(recipe, "x"))
        assert kept
        return kept

    return get


@pytest.mark.parametrize("method", ["full", "lora"])
def test_1x16_and_4x4_give_the_same_gradient(
    method: str, make_recipe: MakeRecipe, step_gradients: Callable[[Recipe], dict[str, Tensor]]
) -> None:
    def gradients(rows: int, accumulation: int) -> dict[str, Tensor]:
        return step_gradients(
            make_recipe(
                f"method.name={method}",
                "method.lora_dropout=0",
                "train.max_steps=1",
                "train.warmup_ratio=0",
                "train.max_grad_norm=0",
                f"train.per_device_train_batch_size={rows}",
                f"train.gradient_accumulation_steps={accumulation}",
                f"run.name={method}-{rows}x{accumulation}",
            )
        )

    whole, cut, single = gradients(16, 1), gradients(4, 4), gradients(1, 16)
    assert whole.keys() == cut.keys() == single.keys()
    largest = max(g.abs().max().item() for g in whole.values())
    assert largest > 1e-3
    for name in whole:
        for other in (cut, single):
            assert (whole[name] - other[name]).abs().max().item() <= 1e-5 * max(largest, 1), name


def test_packing_changes_which_rows_share_a_batch_but_not_what_a_row_gives(
    make_recipe: MakeRecipe, step_gradients: Callable[[Recipe], dict[str, Tensor]]
) -> None:
    # A batch as large as the data: both ways see every row once, in one step.
    common = ("train.max_steps=1", "train.warmup_ratio=0", "train.max_grad_norm=0", "train.per_device_train_batch_size=64",
              "train.gradient_accumulation_steps=1", "method.lora_dropout=0")  # fmt: skip
    plain = step_gradients(make_recipe(*common, "run.name=plain"))
    packed = step_gradients(make_recipe(*common, "run.name=packed", "data.packing=true"))
    for name in plain:
        torch.testing.assert_close(plain[name], packed[name], rtol=1e-3, atol=1e-5)


def test_float32_weights_stay_float32_in_bfloat16_training(
    make_recipe: MakeRecipe, train: Callable[[Recipe], object], tmp_path: Path
) -> None:
    for method, weights in (("full", "model/model"), ("lora", "adapter/adapter_model")):
        name = f"{method}-bf16"
        train(make_recipe("model.dtype=bfloat16", f"method.name={method}", f"run.name={name}"))
        saved = load_file(tmp_path / "runs" / name / f"{weights}.safetensors")
        assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
