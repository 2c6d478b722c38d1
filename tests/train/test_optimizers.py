"""Optimisers of full fine-tuning that need less memory, against the plain ones."""

import json
import random
import sys
from collections.abc import Callable
from contextlib import suppress
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from helpers import Notes
from safetensors.torch import load_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

import luthier.kernels.triton
from luthier.errors import UserError
from luthier.kernels.rounding import PIECE, round_into
from luthier.recipe import Recipe
from luthier.run import Run, claim_run
from luthier.train import bf16_adamw
from luthier.train.fit import fit
from luthier.train.optimizers import step_in_backward

FULL = ("method.name=full", "train.num_train_epochs=1", "train.learning_rate=1e-3")
ONE_PASS = ("train.gradient_accumulation_steps=1", "train.max_grad_norm=0")


def losses(run: Run) -> list[float]:
    lines = [json.loads(line) for line in run.metrics_path.read_text("utf-8").splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def train(make_recipe: Callable[..., Recipe], name: str, *settings: str) -> Run:
    recipe = make_recipe(*FULL, f"run.name={name}", *settings)
    run = claim_run(recipe, "x")
    fit(recipe, run, Notes())
    return run


def test_rounding_is_right_in_the_mean_and_never_further_than_one_step() -> None:
    values = torch.linspace(-3, 3, 1001)
    places = random.Random(0)
    mean = torch.zeros(1001, dtype=torch.float64)
    for _ in range(2000):
        target = torch.empty(1001, dtype=torch.bfloat16)
        round_into(target, values.clone(), places)
        assert ((target.float() - values).abs() <= values.abs() / 128 + 1e-30).all()
        mean += target.double() / 2000
    # 2,000 draws of a number that falls at the ends of a step of |x| / 128 or less.
    assert ((mean - values).abs() <= 5 * values.abs() / 128 / 2 / 2000**0.5 + 1e-12).all()
    exact = torch.tensor([1.0, -0.5, 0.0, torch.inf])
    target = torch.empty(4, dtype=torch.bfloat16)
    round_into(target, exact.clone(), places)
    assert torch.equal(target.float(), exact)


def test_small_updates_add_up_where_rounding_to_the_nearest_loses_them() -> None:
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.ones(PIECE + 100, dtype=torch.bfloat16))
    optimizer = bf16_adamw.BF16AdamW([weight], lr=1e-4, weight_decay=0)
    for _ in range(20):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    moved = 1 - weight.double().mean().item()
    assert moved == pytest.approx(20e-4, rel=0.05)
    nearest = torch.ones(1, dtype=torch.bfloat16)
    for _ in range(20):
        nearest -= 1e-4
    assert nearest.item() == 1


def test_bf16_adamw_takes_the_steps_of_adamw() -> None:
    torch.manual_seed(0)
    start, slopes = torch.randn(5000), torch.randn(6, 5000)
    reference = torch.nn.Parameter(start.bfloat16().float())
    ours = torch.nn.Parameter(start.bfloat16())
    plain = torch.optim.AdamW([reference], lr=1e-2, weight_decay=0.1)
    small = bf16_adamw.BF16AdamW([ours], lr=1e-2, weight_decay=0.1)
    for slope in slopes:
        reference.grad, ours.grad = slope.bfloat16().float(), slope.bfloat16()
        plain.step()
        small.step()
    error = ours.float() - reference.detach()
    assert error.abs().max() < 6 * 3 / 64  # a step of rounding an update
    assert abs(error.mean().item()) < 1e-3  # and no drift


def test_bf16_adamw_refuses_other_weights() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    weight.grad = torch.ones(3)
    with pytest.raises(ValueError, match="float32"):
        bf16_adamw.BF16AdamW([weight], lr=1e-3).step()


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_8bit", "adamw_torch_fused"])
def test_stepping_in_the_backward_ends_at_the_same_weights(
    make_recipe: Callable[..., Recipe], optim: str
) -> None:
    chosen = (*ONE_PASS, f"train.optim={optim}")
    apart = train(make_recipe, "apart", *chosen)
    within = train(make_recipe, "within", *chosen, "train.optimizer_in_backward=true")
    assert losses(apart) == losses(within)
    one, other = (load_file(run.model_path / "model.safetensors") for run in (apart, within))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_no_gradient_outlives_the_backward() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    before = [p.detach().clone() for p in model.parameters()]
    step_in_backward(optimizer)
    model(torch.randn(2, 4)).sum().backward()
    assert all(p.grad is None for p in model.parameters())
    assert all(not torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
    assert len(optimizer.param_groups[0]["params"]) == 4


def test_bfloat16_weights_learn_like_float32_ones(make_recipe: Callable[..., Recipe]) -> None:
    settings = ("train.max_steps=60", "model.dtype=bfloat16", "train.max_grad_norm=0")
    wide = losses(train(make_recipe, "wide", *settings))
    narrow = losses(train(make_recipe, "narrow", *settings, "train.optim=adamw_bf16"))
    assert wide[-1] < wide[0] - 0.5
    last = len(wide) // 4
    apart = sum(a - b for a, b in zip(wide[-last:], narrow[-last:], strict=True)) / last
    assert abs(apart) < 0.1 * (wide[0] - wide[-1])


def test_bfloat16_weights_are_saved_as_such(make_recipe: Callable[..., Recipe]) -> None:
    run = train(
        make_recipe,
        "small",
        "model.dtype=auto",
        *ONE_PASS,
        "train.optim=adamw_bf16",
        "train.optimizer_in_backward=true",
    )
    weights = load_file(run.model_path / "model.safetensors")
    assert {w.dtype for w in weights.values()} == {torch.bfloat16}


def test_what_cannot_go_together_is_said(make_recipe: Callable[..., Recipe]) -> None:
    with pytest.raises(UserError, match="max_grad_norm=0"):
        make_recipe("train.optimizer_in_backward=true")
    with pytest.raises(UserError, match="is for method"):
        make_recipe("method.name=lora", "train.optim=adamw_bf16")
    with pytest.raises(UserError, match=r"leave model\.dtype at auto"):
        make_recipe("method.name=full", "train.optim=adamw_bf16", "model.dtype=float32")


def test_tritons_update_is_given_no_part_of_a_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[torch.Tensor] = []
    kernel = SimpleNamespace(update=lambda *tensors, **_: given.extend(tensors))
    monkeypatch.setitem(sys.modules, "luthier.kernels.triton.adamw", kernel)
    monkeypatch.setattr(luthier.kernels.triton, "adamw", kernel, raising=False)
    monkeypatch.setattr(bf16_adamw, "fused", lambda _: True)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        part = distribute_tensor(torch.ones(8, 4).bfloat16(), mesh, [Shard(0)])
        weights = [torch.nn.Parameter(part), torch.nn.Parameter(torch.ones(3).bfloat16())]
        for weight in weights:
            weight.grad = torch.ones_like(weight)
        with suppress(RuntimeError):  # PyTorch's operations may refuse it
            bf16_adamw.BF16AdamW([weights[0]], lr=0.1).step()
        assert not any(isinstance(tensor, DTensor) for tensor in given)
        bf16_adamw.BF16AdamW([weights[1]], lr=0.1).step()
        assert given[-4] is weights[1]
    finally:
        dist.destroy_process_group()
