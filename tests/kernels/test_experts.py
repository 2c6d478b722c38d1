"""Adapters of experts by grouped products, against PEFT, which adds them to the weights."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from adapting import fill_up
from families import make_model
from helpers import gradients, random_rows
from peft import PeftModel
from peft.tuners.lora import ParamWrapper
from torch import Tensor
from torch.nn.functional import grouped_mm

from luthier.data.batches import collate
from luthier.kernels import experts
from luthier.kernels.fast import install, install_checked, remove
from luthier.models.adapters import attach_adapter
from luthier.objectives.supervised import loss_sum
from luthier.plan.live import LiveStorage
from luthier.recipe import KernelsGroup, MethodGroup

ALONE = KernelsGroup(**dict.fromkeys(KernelsGroup.model_fields, False)).model_copy(
    update={"lora": True}
)
BOTH = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
FAMILIES = ["mixtral", "qwen2_moe", "qwen3_moe"]


def adapted(family: str, parameters: list[str], dtype: torch.dtype, **changes: Any) -> PeftModel:
    """A model whose experts' adapters say something."""
    chosen = {"lora_dropout": 0.0, "lora_r": 3, "lora_alpha": 9} | changes
    method = MethodGroup(target_modules=["q_proj"], target_parameters=parameters, **chosen)
    model = attach_adapter(make_model(family, 96).to(dtype), method)
    fill_up(model)
    return model.eval()


def loss_and_gradients(model: PeftModel, fast: bool) -> tuple[float, dict[str, torch.Tensor]]:
    put_in = install(model, ALONE) if fast else None
    loss = loss_sum(model, collate([[row] for row in random_rows(4)]))
    found = gradients(model, loss)
    if put_in is not None:
        assert put_in.missing == []
        remove(model, put_in)
    return loss.item(), found


@pytest.mark.parametrize("changes", [{}, {"use_rslora": True, "lora_r": 8}], ids=["r3", "rs8"])
@pytest.mark.parametrize("parameters", [BOTH, BOTH[1:], BOTH[:1]], ids=["both", "down", "up"])
@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_are_pefts(
    family: str, parameters: list[str], changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = adapted(family, parameters, torch.float32, **changes)
    theirs = loss_and_gradients(model, fast=False)
    with monkeypatch.context() as patched:  # W + ΔW is not made

        def factors(*_: Any) -> None:
            raise AssertionError

        patched.setattr(ParamWrapper, "_activate_lora", factors)
        ours = loss_and_gradients(model, fast=True)
    assert ours[0] == pytest.approx(theirs[0], rel=1e-5)
    for name, reference in theirs[1].items():
        off = (ours[1][name] - reference).norm()
        assert off <= 2e-5 * reference.norm() + 1e-6, name
    assert any("experts" in name for name in theirs[1])


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_is_as_near_to_float32_as_pefts(family: str) -> None:
    """Of one layer's experts, with the same choice of them: another one would be another function."""
    torch.manual_seed(1)
    x, slope = torch.randn(2, 11, 64).bfloat16().unbind()
    chosen = torch.stack([torch.randperm(3)[:2] for _ in range(11)])  # the last is never chosen
    weights = torch.rand(11, 2).bfloat16()

    def results(dtype: torch.dtype, fast: bool) -> list[torch.Tensor]:
        model = adapted(family, BOTH, torch.bfloat16).to(dtype)
        if fast:
            assert install(model, ALONE).missing == []
        experts = model.get_base_model().model.layers[0].mlp.experts
        leaves = [x.to(dtype).requires_grad_(), weights.to(dtype).requires_grad_()]
        output = experts(leaves[0], chosen, leaves[1])
        trained = [p for p in experts.parameters() if p.requires_grad]
        return [output, *torch.autograd.grad(output, [*leaves, *trained], slope.to(dtype))]

    exact = results(torch.float32, fast=False)
    found = [results(torch.bfloat16, fast) for fast in (True, False)]
    for reference, ours, theirs in zip(exact, *found, strict=True):
        errors = [(each.float() - reference).norm() / reference.norm() for each in (ours, theirs)]
        assert errors[0] < errors[1] + 0.005
        assert errors[0] < 0.02


def cast_anew(x: Tensor, module: Any, adapters: dict[str, Any], name: str, ends: Tensor) -> Tensor:
    """The products as autograd differentiates them, with A and B cast, filled up and laid out in the graph."""
    base = experts._Frozen.apply(x, getattr(module, name), ends)
    wrapper = adapters[name]
    a, b = wrapper.lora_A["default"].weight, wrapper.lora_B["default"].weight
    a = a.view(wrapper.num_experts, -1, a.shape[-1])
    b = b.view(b.shape[0], -1, wrapper.num_experts).permute(2, 0, 1)
    short = -a.shape[1] % 8
    a, b = F.pad(a.to(x.dtype), (0, 0, 0, short)), F.pad(b.to(x.dtype), (0, short)).contiguous()
    inner = grouped_mm(x, a.mT, offs=ends)
    return base.add(grouped_mm(inner, b.mT, offs=ends), alpha=wrapper.scaling["default"])


@pytest.mark.parametrize(("rank", "scale"), [(3, 2.0), (8, 0.5), (8, 3.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_kept_casts_give_what_casts_in_the_graph_give(
    family: str, dtype: torch.dtype, rank: int, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bit where the scale is a power of two; another one is rounded in another place."""
    model = adapted(family, BOTH, dtype, lora_r=rank, lora_alpha=rank * scale)
    ours = loss_and_gradients(model, fast=True)
    monkeypatch.setattr(experts, "_adapted", cast_anew)
    plain = loss_and_gradients(model, fast=True)
    assert ours[0] == plain[0]
    tolerance = 0.0 if scale != 3.0 else 0.02 if dtype == torch.bfloat16 else 1e-6
    for name, reference in plain[1].items():
        assert ours[1][name].dtype == reference.dtype
        assert ours[1][name].stride() == reference.stride()
        assert (ours[1][name] - reference).norm() <= tolerance * reference.norm(), name


def test_recomputation_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model = adapted("mixtral", BOTH, torch.float32)
    kept = loss_and_gradients(model, fast=True)
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.enable_input_require_grads()
    again = loss_and_gradients(model, fast=True)
    for name, reference in kept[1].items():
        assert torch.allclose(again[1][name], reference, atol=1e-6), name


def test_an_adapter_that_is_off_or_merged_runs_pefts_path() -> None:
    model = adapted("mixtral", BOTH, torch.float32)
    ids = torch.arange(1, 9)[None]
    with torch.no_grad():
        on = model(ids).logits
        with model.disable_adapter():
            off = model(ids).logits
        fast = install(model, ALONE)
        assert torch.allclose(model(ids).logits, on, atol=1e-5)
        with model.disable_adapter():
            assert torch.allclose(model(ids).logits, off, atol=1e-5)
        model.merge_adapter()
        assert torch.allclose(model(ids).logits, on, atol=1e-5)
        model.unmerge_adapter()
        remove(model, fast)
        assert torch.allclose(model(ids).logits, on, atol=1e-5)


def test_the_check_at_the_start_leaves_them_in() -> None:
    fast = install_checked(adapted("qwen3_moe", BOTH, torch.float32), ALONE)
    assert fast.missing == []


def test_no_stack_of_weights_is_made_twice() -> None:
    """What a step of one row takes beside the model: PEFT needs a layer's experts once more."""
    peaks = []
    for fast in (True, False):
        model = adapted("mixtral", BOTH, torch.float32)
        if fast:
            install(model, ALONE)
        batch = collate([[row] for row in random_rows(1)])
        with LiveStorage() as live:
            live.add(list(model.parameters()))
            before = live.live
            loss_sum(model, batch).backward()
        peaks.append(live.peak - before)
    stacks = sum(p.nbytes for p in model.parameters() if p.ndim == 3) / 2  # of two layers
    assert peaks[0] < peaks[1] - stacks
