"""Fast paths against the reference: loss and every gradient, family by family."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from adapting import adapted
from families import MODEL_FAMILIES, make_model, save_tiny
from helpers import gradients, random_rows
from peft import PeftModel
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from luthier.data.batches import collate
from luthier.kernels.fast import install, install_checked, remove
from luthier.kernels.separation import rows_stay_apart
from luthier.models.adapters import attach_adapter
from luthier.models.load import load_model, quantization
from luthier.objectives.supervised import loss_sum
from luthier.recipe import KernelsGroup, MethodGroup
from luthier.train.setup import recompute_activations

ALL = KernelsGroup()
NONE = KernelsGroup(**dict.fromkeys(KernelsGroup.model_fields, False))


def loss_and_gradients(model: Any, wanted: KernelsGroup, rows: int = 5) -> Any:
    """Of packed rows; the fast paths are taken out again."""
    fast = install(model, wanted)
    batch = collate([[row] for row in random_rows(rows)])
    loss = loss_sum(model, batch, head=fast.head)
    found = gradients(model, loss)
    remove(model, fast)
    return loss.item(), found


def assert_close(ours: Any, theirs: Any, tolerance: float) -> None:
    assert ours[0] == pytest.approx(theirs[0], rel=tolerance)
    assert ours[1].keys() == theirs[1].keys()
    for name, reference in theirs[1].items():
        scale = reference.float().norm().item() + 1e-6
        assert (ours[1][name] - reference).float().norm().item() <= tolerance * scale, name


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("family", MODEL_FAMILIES)
def test_loss_and_gradients_in_float32(family: str, method: str, checkpointing: bool) -> None:
    model = adapted(family) if method == "lora" else make_model(family, 96)
    if checkpointing:
        model.train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        model.gradient_checkpointing_enable({"use_reentrant": False})
        if method == "lora":
            model.enable_input_require_grads()
    assert_close(loss_and_gradients(model, ALL), loss_and_gradients(model, NONE), 2e-5)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3", "mistral-window", "phi3"])
def test_loss_and_gradients_in_bfloat16(family: str) -> None:
    """Both are as near to float32 as 8 bits allow: the fast path not twice as far as the other."""
    exact = loss_and_gradients(adapted(family), NONE)
    errors = []
    for wanted in (ALL, NONE):
        with torch.autocast("cpu", torch.bfloat16):
            found = loss_and_gradients(adapted(family, torch.bfloat16), wanted)
        names = [n for n in exact[1] if "lora_" in n]
        off = sum((found[1][n].float() - exact[1][n]).norm() ** 2 for n in names)
        errors.append((off / sum(exact[1][n].norm() ** 2 for n in names)).sqrt().item())
        assert found[0] == pytest.approx(exact[0], rel=0.01)
    assert errors[0] < 2 * errors[1] + 0.01
    assert errors[0] < 0.1


@pytest.mark.parametrize("part", KernelsGroup.model_fields)
def test_each_alone(part: str) -> None:
    alone = NONE.model_copy(update={part: True})
    model = adapted("qwen3")
    assert_close(loss_and_gradients(model, alone), loss_and_gradients(model, NONE), 2e-5)


@pytest.mark.parametrize(
    "changes", [{"use_rslora": True}, {"target_modules": ["q_proj", "down_proj"]}]
)
def test_kinds_of_adapters(changes: dict[str, Any]) -> None:
    model = adapted("llama", **changes)
    assert_close(loss_and_gradients(model, ALL), loss_and_gradients(model, NONE), 2e-5)


def test_dora_runs_pefts_path_and_says_so() -> None:
    model = adapted("llama", use_dora=True)
    fast = install(model, ALL)
    assert fast.missing == ["lora: 14 of 14 layers run PEFT's own path"]
    remove(model, fast)
    assert_close(loss_and_gradients(model, ALL), loss_and_gradients(model, NONE), 2e-5)


def test_four_bits(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "tiny")
    method = MethodGroup(name="qlora", lora_dropout=0.0)
    stored = quantization(method, torch.float32)

    def model() -> PeftModel:
        torch.manual_seed(0)
        made = attach_adapter(load_model(folder, torch.float32, quantization=stored), method)
        for name, parameter in made.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.05)
        return made.eval()

    one = model()
    ours, theirs = loss_and_gradients(one, ALL), loss_and_gradients(one, NONE)
    assert_close(ours, theirs, 1e-4)


class Expansions(TorchDispatchMode):
    """Counts how often a 4-bit weight is expanded."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.name() == "bitsandbytes::dequantize_4bit"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("recomputes", [False, True])
def test_a_recomputed_layer_expands_its_weights_once_for_both_passes(
    tmp_path: Path, recomputes: bool
) -> None:
    """To the bit what expanding them again gives, and of one layer at a time."""
    from luthier.kernels import dropout
    from luthier.plan.live import LiveStorage

    folder = save_tiny(tmp_path / "tiny")
    method = MethodGroup(name="qlora", lora_dropout=0.1)
    stored = quantization(method, torch.float32)
    dropout.table(0.1, torch.float32)  # which is made once and stays
    found = []
    for keeps in (True, False):
        torch.manual_seed(0)
        made = load_model(folder, torch.float32, quantization=stored)
        model = attach_adapter(made, method).train()
        install(model, KernelsGroup(keep_expanded=keeps))
        if recomputes:
            recompute_activations(model)
        torch.manual_seed(1)
        with LiveStorage() as live, Expansions() as expansions:
            loss_sum(model, collate([[row] for row in random_rows(5)])).backward()
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        found.append((grads, expansions.count, live.peak))
    (kept, few, high), (again, many, low) = found
    assert all(torch.equal(one, other) for one, other in zip(kept, again, strict=True))
    layers = 2 * 7
    # Nothing learns from the gradient of the first layer's inputs, unless it is recomputed.
    assert (few, many) == ((2 * layers, 3 * layers) if recomputes else (2 * layers - 3,) * 2)
    one_layer = 4 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128)
    assert (0 < high - low <= one_layer) if recomputes else high == low


def test_dropout_equals_the_slow_formula_with_the_same_mask() -> None:
    from luthier.kernels.casts import Casts
    from luthier.kernels.dropout import drop
    from luthier.kernels.lora import adapted_linears

    model = adapted("llama", lora_dropout=0.25).train()
    layer = model.get_base_model().model.layers[0].mlp.gate_proj
    x = torch.randn(1, 50, 64, requires_grad=True)
    torch.manual_seed(5)
    (ours,) = adapted_linears(x, [layer], Casts())
    ours.square().sum().backward()
    found = [x.grad, *(p.grad for p in layer.parameters() if p.grad is not None)]
    torch.manual_seed(5)
    seed = int(torch.randint(2**62, ()))
    mask = drop(torch.ones(50, 64), 0.25, seed)
    assert 0.15 < 1 - mask.mean().item() < 0.35
    again = x.detach().requires_grad_()
    model.zero_grad()
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    dropped = again * mask / 0.75
    reference = again @ layer.base_layer.weight.t() + (dropped @ a.t()) @ b.t() * 2
    assert torch.allclose(ours, reference, atol=1e-5)
    reference.square().sum().backward()
    expected = [again.grad, *(p.grad for p in layer.parameters() if p.grad is not None)]
    for one, other in zip(found, expected, strict=True):
        assert one is not None
        assert other is not None
        assert torch.allclose(one, other, atol=1e-4)


def test_a_step_repeats_by_its_seed() -> None:
    model = adapted("llama", lora_dropout=0.1).train()
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        losses.append(loss_and_gradients(model, ALL)[0])
    assert losses[0] == losses[1] != losses[2]


def test_rows_stay_apart_under_the_fast_paths() -> None:
    for family in MODEL_FAMILIES:
        model = make_model(family, 96)
        install(model, ALL)
        assert rows_stay_apart(model), family


def test_what_is_saved_is_pefts(tmp_path: Path) -> None:
    model = adapted("llama")
    model.save_pretrained(tmp_path / "plain")
    install(model, ALL)
    model.save_pretrained(tmp_path / "fast")
    plain, fast = (
        (tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("plain", "fast")
    )
    assert plain == fast


def test_a_fast_path_that_is_wrong_is_taken_out(monkeypatch: pytest.MonkeyPatch) -> None:
    from luthier.kernels import gated

    monkeypatch.setattr(gated, "gated", lambda gate, up, _kind: gate * up)
    model = make_model("llama", 96)
    fast = install_checked(model, ALL)
    assert fast.missing == ["all: the outputs differ from the reference path, which runs instead"]
    assert_close(
        loss_and_gradients(model, NONE), loss_and_gradients(make_model("llama", 96), NONE), 1e-6
    )


@pytest.mark.parametrize("method", ["lora", "qlora"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_does_not_take_them_out_of_the_real_model(
    real_model: Path, method: Any, dtype: torch.dtype
) -> None:
    chosen = MethodGroup(name=method)
    model = load_model(real_model, dtype, quantization=quantization(chosen, dtype))
    assert install_checked(attach_adapter(model, chosen), ALL).missing == []


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_compiled_parts_agree(family: str) -> None:
    """In one process compiling is for all models, so it is switched off again."""
    from luthier.kernels import compiling

    if not compiling.has_compiler(torch.device("cpu")):
        pytest.skip("no C++ compiler here")
    model = make_model(family, 96)
    reference = loss_and_gradients(model, NONE)
    try:
        fast = install_checked(model, ALL, compiled=True)
        assert "compile" not in " ".join(fast.missing)
        assert compiling._enabled
        remove(model, fast)
        assert_close(loss_and_gradients(model, ALL), reference, 2e-5)
    finally:
        compiling.enable(False)


def test_a_compiler_that_fails_is_said_and_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from luthier.kernels import compiling, gated

    def broken(*_: Any) -> None:
        raise RuntimeError("g++ not found") if compiling._enabled else AssertionError

    monkeypatch.setattr(gated, "_slopes", lambda *a: broken() if compiling._enabled else a[1:3])
    model = make_model("llama", 96)
    found = install_checked(model, ALL, compiled=True)
    assert "compile: RuntimeError: g++ not found" in found.missing
    assert not compiling._enabled


def test_compiling_is_chosen_by_the_length_of_the_run() -> None:
    from luthier.kernels.compiling import has_compiler, pays

    cpu = torch.device("cpu")
    assert pays("always", 1, cpu)
    assert not pays("never", 10**6, cpu)
    assert not pays("auto", 10, cpu)
    assert pays("auto", 10**6, cpu) == has_compiler(cpu)


def test_generation_after_installation_is_unchanged() -> None:
    """Padding, a cache, no row lengths: the attention function hands over to SDPA."""
    model = make_model("mistral-window", 96)
    tokens = torch.arange(1, 13).view(2, 6)
    mask = torch.ones_like(tokens)
    mask[0, :3] = 0
    settings = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    plain = model.generate(tokens, attention_mask=mask, **settings)
    install(model, ALL)
    assert torch.equal(plain, model.generate(tokens, attention_mask=mask, **settings))


@pytest.mark.parametrize("window", [None, 5, 40])
@pytest.mark.parametrize("lengths", [(7,), (1, 30, 4), (300, 3, 290)])
@pytest.mark.parametrize("heads", [(4, 4), (6, 2)])
def test_attention_row_by_row(
    window: int | None, lengths: tuple[int, ...], heads: tuple[int, int]
) -> None:
    """Against SDPA with one mask over all tokens, also where a row takes several blocks."""
    from luthier.kernels.attention import attend_by_rows

    torch.manual_seed(0)
    total = sum(lengths)
    shapes = [(1, h, total, 16) for h in (heads[0], heads[1], heads[1])]
    leaves = [torch.randn(s, requires_grad=True) for s in shapes]
    row = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    distance = torch.arange(total)[:, None] - torch.arange(total)
    seen = (row[:, None] == row) & (distance >= 0) & (distance < (window or total))
    query, key, value = leaves
    ours, _ = attend_by_rows(
        nn.Module(),
        query,
        key,
        value,
        None,
        scaling=0.3,
        sliding_window=window,
        row_lengths=lengths,
    )
    shared = heads[0] // heads[1]
    wide = [t.repeat_interleave(shared, 1) for t in (key, value)]
    theirs = nn.functional.scaled_dot_product_attention(query, *wide, attn_mask=seen, scale=0.3)
    theirs = theirs.transpose(1, 2)
    assert torch.allclose(ours, theirs, atol=1e-5)
    weight = torch.randn_like(ours)
    found = [torch.autograd.grad((o * weight).sum(), leaves) for o in (ours, theirs)]
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, atol=1e-4)


def test_norm_gate_and_rotation_by_numerical_gradients() -> None:
    from luthier.kernels.gated import gated
    from luthier.kernels.rotary import rotate

    torch.manual_seed(0)
    gate, up = (torch.randn(3, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    for kind in ("silu", "gelu_tanh"):
        assert torch.autograd.gradcheck(lambda g, u, k=kind: gated(g, u, k), (gate, up))
    x = torch.randn(1, 2, 3, 8, dtype=torch.float64)
    angles = torch.rand(1, 1, 3, 4, dtype=torch.float64).repeat(1, 1, 1, 2)
    turned = rotate(x, angles.cos(), angles.sin())
    assert torch.allclose(rotate(turned, angles.cos(), -angles.sin()), x)  # there and back
    assert torch.allclose(turned.norm(dim=-1), x.norm(dim=-1))


@pytest.mark.parametrize("rate", [0.05, 0.5])
def test_masks_have_their_rate_and_do_not_know_of_each_other(rate: float) -> None:
    """Each within four deviations of independent numbers (of the table's million)."""
    from luthier.kernels.dropout import drop

    rows = columns = 512
    masks = [drop(torch.ones(rows, columns), rate, seed) == 0 for seed in range(40)]
    deviation = (rate * (1 - rate) / 2**18) ** 0.5
    for one, other in pairwise(masks):
        assert abs(one.double().mean().item() - rate) < 4 * deviation
        both = (one & other).double().mean().item()
        assert abs(both - rate**2) < 4 * deviation * rate + 4 * rate * (1 - rate) / 512
    again = drop(torch.ones(rows, columns), rate, 7) == 0
    assert torch.equal(again, masks[7])
    assert not torch.equal(masks[0], masks[1])


def test_dropping_in_place_and_in_groups_of_rows_is_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from luthier.kernels import dropout

    monkeypatch.setattr(dropout, "_WINDOW", 700)  # seven rows at once
    for dtype in (torch.float32, torch.bfloat16):
        values = torch.randn(50, 100).to(dtype)
        dropped = dropout.drop(values.t().contiguous().t(), 0.3, 9)
        kept = dropped != 0
        assert torch.equal(dropped, values * kept)
        assert 0.2 < 1 - kept.float().mean().item() < 0.4
        assert not torch.equal(kept[:7], kept[7:14])
        assert torch.equal(dropout.drop_(values.clone(), 0.3, 9), dropped)


def test_recomputation_keeps_no_layer_alive() -> None:
    """After the backward only gradients are left, and its peak does not grow with the layers."""
    from luthier.plan.live import LiveStorage

    model = adapted("llama").train()
    install(model, ALL)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.enable_input_require_grads()
    batch = collate([[row] for row in random_rows(5)])
    with LiveStorage() as live:
        live.add(
            [
                *model.parameters(),
                *model.buffers(),
                batch.input_ids,
                batch.position_ids,
                batch.labels,
            ]
        )
        before = live.live
        loss_sum(model, batch).backward()
        gradients = sum(4 * p.grad.numel() for p in model.parameters() if p.grad is not None)
        assert live.live - before < 1.1 * gradients + 10_000


@pytest.mark.parametrize("window", [None, 64])
def test_memory_grows_with_tokens_not_with_their_square(window: int | None) -> None:
    from luthier.kernels.attention import attend_by_rows
    from luthier.plan.live import LiveStorage

    def peak(length: int) -> int:
        leaves: list[Tensor] = [torch.randn(1, 2, length, 8, requires_grad=True) for _ in range(3)]
        with LiveStorage() as live:
            out, _ = attend_by_rows(
                nn.Module(), *leaves, None, sliding_window=window, row_lengths=(length,)
            )
            out.sum().backward()
        return live.peak

    small, large = peak(1024), peak(4096)
    assert large < 4.5 * small
