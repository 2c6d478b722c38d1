"""Triton's kernels, interpreted on a CPU, against PyTorch's operations, and Liger's kernels."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from adapting import fill_up
from families import make_model
from helpers import gradients, random_rows
from interpreted import interpreting, need_triton, triton_in_use
from peft import PeftModel
from torch import Tensor, nn

from luthier.data.batches import collate
from luthier.kernels import dropout
from luthier.kernels.attention import row_inputs
from luthier.kernels.fast import install, install_checked, remove
from luthier.kernels.gated import gated
from luthier.kernels.head import head_loss, head_losses
from luthier.kernels.norm import rms_norm
from luthier.kernels.rotary import rotate_both
from luthier.models.adapters import attach_adapter
from luthier.objectives.supervised import loss_sum
from luthier.recipe import KernelsGroup, MethodGroup
from luthier.train.bf16_adamw import BF16AdamW

need_triton()

# Of the largest number: rounding of the inputs to a dtype, once or twice.
CLOSE = {torch.float32: 1e-5, torch.bfloat16: 2**-7, torch.float16: 2**-10}
DTYPES = pytest.mark.parametrize("dtype", list(CLOSE), ids=str)


def results(function: Callable[..., Any], *inputs: Tensor) -> list[Tensor]:
    """Outputs, and gradients of a sum in which each output has another weight."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    outputs = function(*leaves)
    outputs = outputs if isinstance(outputs, Sequence) else [outputs]
    torch.manual_seed(1)
    total = torch.stack([(o.float() * torch.randn(o.shape)).sum() for o in outputs]).sum()
    return [*(o.detach() for o in outputs), *torch.autograd.grad(total, leaves)]


def agree(function: Callable[..., Any], *inputs: Tensor) -> None:
    """In Triton and by PyTorch's operations; neither further from the truth than its dtype allows."""
    reference = results(function, *(tensor.float() for tensor in inputs))
    with triton_in_use():
        found = results(function, *inputs)
    for one, other in zip(found, reference, strict=True):
        assert one.shape == other.shape
        tolerance = 2 * CLOSE[inputs[0].dtype] * (other.abs().max().item() + 1e-3)
        assert (one.float() - other).abs().max().item() <= tolerance


def numbers(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@DTYPES
@pytest.mark.parametrize("shape", [(1, 1), (2, 3, 33)])
def test_norm(shape: tuple[int, ...], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    from luthier.kernels.triton import rms_norm as kernel

    monkeypatch.setattr(kernel, "_PROGRAMS", 4)  # fewer than rows
    agree(
        lambda x, w: rms_norm(x, w, 1e-6),
        numbers(*shape, dtype=dtype),
        1 + numbers(shape[-1], seed=1, dtype=dtype),
    )


def test_norm_of_rows_that_do_not_lie_in_order() -> None:
    agree(lambda x, w: rms_norm(x.transpose(0, 1), w, 1e-6), numbers(3, 5, 8), numbers(8))
    heads, weight = numbers(1, 3, 5, 8), numbers(8)
    agree(lambda x, w: rms_norm(x.transpose(1, 2), w, 1e-6, plus=1.0), heads, weight)


@DTYPES
def test_norm_of_a_sum(dtype: torch.dtype) -> None:
    from luthier.kernels.triton import rms_norm as kernel

    x, other, weight = (
        numbers(*s, dtype=dtype, seed=i) for i, s in enumerate([(5, 33)] * 2 + [(33,)])
    )
    y, total, scales = kernel.forward(x, weight, 1e-6, other)
    # The interpreter's own rounding to bfloat16 is not to the nearest.
    assert torch.allclose(total.float(), x.float() + other.float(), rtol=CLOSE[dtype], atol=1e-6)
    alone, _, _ = kernel.forward(total, weight, 1e-6)
    assert torch.equal(y, alone)
    slope, more = numbers(5, 33, dtype=dtype, seed=7), numbers(5, 33, dtype=dtype, seed=8)
    plain, _ = kernel.backward(slope, total, weight, scales, weighs=False)
    both, _ = kernel.backward(slope, total, weight, scales, weighs=False, more=more)
    expected = plain.float() + more.float()
    assert torch.allclose(both.float(), expected, atol=4 * CLOSE[dtype], rtol=4 * CLOSE[dtype])


@pytest.mark.parametrize("dtypes", [(torch.bfloat16, torch.float32), (torch.float32,) * 2])
def test_norm_of_a_sum_and_its_gradients(dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    """Under autocast what the attention gives is bfloat16, and what it is added to float32."""
    from luthier.kernels.layer import add_rms_norm

    inputs = numbers(2, 5, 33, dtype=dtypes[0]), numbers(2, 5, 33, dtype=dtypes[1], seed=1)
    weight = 1 + numbers(33, seed=2)

    def plain(x: Tensor, other: Tensor, weight: Tensor) -> Any:
        return rms_norm(x + other, weight, 1e-6), x + other

    with triton_in_use():
        found = results(lambda x, o, w: add_rms_norm(x, o, w, 1e-6), *inputs, weight)
    for one, other in zip(found, results(plain, *inputs, weight), strict=True):
        assert one.dtype == other.dtype
        close = 2 * CLOSE[dtypes[0]]
        assert torch.allclose(one.float(), other.float(), rtol=close, atol=close)


def test_layers_written_as_llamas_make_the_sum_with_the_norm(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from luthier.kernels import layer

    counted = 0
    right = layer.add_rms_norm

    def counting(*args: Any) -> Any:
        nonlocal counted
        counted += 1
        return right(*args)

    monkeypatch.setattr(layer, "add_rms_norm", counting)
    tokens = torch.arange(1, 9)[None]
    for family, calls in (("llama", 2), ("qwen3_moe", 2), ("gemma3", 0), ("phi3", 0)):
        model = make_model(family, 96)
        expected = model(tokens).logits
        counted = 0
        with triton_in_use():
            fast = install(model, KernelsGroup())
            found = model(tokens, use_cache=False, **row_inputs(model, (8,))).logits
        assert counted == calls, family
        assert torch.allclose(found, expected, atol=1e-4), family
        remove(model, fast)


@DTYPES
@pytest.mark.parametrize("kind", ["silu", "gelu_tanh"])
@pytest.mark.parametrize("shape", [(1,), (2, 3, 5), (1, 7, 301)])
def test_gate(shape: tuple[int, ...], kind: str, dtype: torch.dtype) -> None:
    wide = numbers(*shape, dtype=dtype) * 4
    agree(lambda g, u: gated(g, u, kind), wide, numbers(*shape, dtype=dtype, seed=1))


@pytest.mark.parametrize("kind", ["silu", "gelu_tanh"])
def test_gate_of_numbers_that_overflow_an_exponential(kind: str) -> None:
    edges = torch.tensor([-1e4, -200.0, -88.0, -1e-30, 0.0, 1e-30, 88.0, 200.0, 1e4])
    agree(lambda g, u: gated(g, u, kind), edges, torch.ones(9))


@DTYPES
@pytest.mark.parametrize("heads", [(1, 1), (6, 2), (3, 3)])
def test_rotation(heads: tuple[int, int], dtype: torch.dtype) -> None:
    batch, tokens, width = 2, 5, 6
    angles = numbers(batch, 1, tokens, width // 2).repeat(1, 1, 1, 2)

    def turn(query: Tensor, key: Tensor) -> Any:
        # As layers hand them over: (batch, T, heads, d), turned.
        return rotate_both(query.transpose(1, 2), key.transpose(1, 2), angles.cos(), angles.sin())

    shapes = [(batch, tokens, h, width) for h in heads]
    agree(turn, *(numbers(*s, dtype=dtype, seed=i) for i, s in enumerate(shapes)))


@DTYPES
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize(("rows", "words"), [(1, 2), (5, 33), (3, 8200)])
def test_losses(rows: int, words: int, softcap: float | None, dtype: torch.dtype) -> None:
    targets = torch.randint(words, (rows,), generator=torch.Generator().manual_seed(3))
    targets[0] = words - 1
    hidden, weight, bias = numbers(rows, 9), numbers(words, 9, seed=1), numbers(words, seed=2)
    inputs = [tensor.to(dtype) for tensor in (hidden, weight, bias)]
    for loss in (head_loss, head_losses):
        agree(lambda h, w, b, loss=loss: loss(h, w, b, targets, softcap), *inputs)


def test_losses_of_logits_that_overflow_an_exponential() -> None:
    from luthier.kernels.triton.cross_entropy import losses_

    logits = torch.tensor([[1e4, -1e4, 0.0], [-300.0, -301.0, -1e30]])
    targets = torch.tensor([1, 0])
    found = losses_(logits.clone(), targets, softcap=None, slopes=False)
    assert torch.allclose(found, F.cross_entropy(logits, targets, reduction="none"))


def philox(seed: int, counters: np.ndarray) -> np.ndarray:
    """Philox 4x32-10 (Salmon et al. 2011): (4, n) uint32 of n 32-bit counters."""
    low = np.uint64(2**32 - 1)
    c = [counters.astype(np.uint64)] + [np.zeros(len(counters), np.uint64)] * 3
    keys = [np.uint64(seed & 0xFFFFFFFF), np.uint64(seed >> 32)]
    for _ in range(10):
        one, two = np.uint64(0xD2511F53) * c[0], np.uint64(0xCD9E8D57) * c[2]
        high = np.uint64(32)
        c = [(two >> high) ^ c[1] ^ keys[0], two & low, (one >> high) ^ c[3] ^ keys[1], one & low]
        keys = [(keys[0] + np.uint64(0x9E3779B9)) & low, (keys[1] + np.uint64(0xBB67AE85)) & low]
    return np.stack(c).astype(np.uint32)


def test_philox_of_the_tests_is_that_of_its_authors() -> None:
    """Known answers: Random123's ``kat_vectors``, philox4x32 10 of all noughts."""
    assert [hex(n) for n in philox(0, np.zeros(1))[:, 0]] == [
        "0x6627e8d5", "0xe169c58d", "0xbc57ac4c", "0x9b00dbd8",
    ]  # fmt: skip


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (3, 700), (9, 500)])
def test_dropout_is_a_function_of_seed_and_index(shape: tuple[int, int]) -> None:
    from luthier.kernels.triton.dropout import BLOCK

    rate, seed = 0.3, 2**61 + 12345
    count = shape[0] * shape[1]
    programs = -(-count // (4 * BLOCK))
    bits = philox(seed, np.arange(programs * BLOCK)).view(np.int32)
    # Triton's way from 32 bits to [0, 1): the magnitude over 2³¹.
    chances = np.where(bits < 0, ~bits, bits) * np.float32(4.6566127342e-10)
    places = chances.reshape(4, programs, BLOCK).transpose(1, 0, 2).reshape(-1)[:count]
    kept = torch.from_numpy(places >= rate).view(shape)
    for dtype in CLOSE:
        values = numbers(*shape, dtype=dtype) + 10
        with triton_in_use():
            dropped = dropout.drop(values, rate, seed)
            again = dropout.drop_(values.clone(), rate, seed)
        assert torch.equal(dropped, values * kept)
        assert torch.equal(again, dropped)


def test_dropout_of_an_adapter_repeats_under_recomputation() -> None:
    """The gradient is the same whether a layer is kept or computed again, and follows the seed."""
    found = []
    with triton_in_use():
        for recomputes, seed in ((False, 5), (True, 5), (False, 6)):
            model = adapted("llama", lora_dropout=0.3).train()
            if recomputes:
                model.gradient_checkpointing_enable({"use_reentrant": False})
                model.enable_input_require_grads()
            install(model, KernelsGroup(norm=False, gated=False, rotary=False, loss=False))
            torch.manual_seed(seed)
            batch = collate([[row] for row in random_rows(1)])
            found.append(gradients(model, loss_sum(model, batch)))
    for name, gradient in found[0].items():
        assert torch.allclose(gradient, found[1][name], atol=1e-5), name
    assert not torch.allclose(found[0][name], found[2][name], atol=1e-3)


def adamw_steps(weights: Tensor, slopes: Sequence[Tensor], **settings: Any) -> Tensor:
    parameter = nn.Parameter(weights.clone())
    optimizer = BF16AdamW([parameter], **settings)
    for slope in slopes:
        parameter.grad = slope.clone()
        optimizer.step()
    return parameter.detach()


@pytest.mark.parametrize("count", [1, 1023, 3000])
def test_adamw_rounds_what_the_reference_computes_to_a_neighbour(count: int) -> None:
    """Of a first step, where both see the same means."""
    weights, slope = numbers(count, dtype=torch.bfloat16), numbers(count, seed=1).bfloat16()
    settings = {"lr": 0.01, "weight_decay": 0.1}
    exact = nn.Parameter(weights.float())
    optimizer = torch.optim.AdamW([exact], **settings)
    exact.grad = slope.float()
    optimizer.step()
    with triton_in_use():
        found = adamw_steps(weights, [slope], **settings)
    step = torch.finfo(torch.bfloat16).eps * exact.detach().abs() + 1e-9
    assert ((found.float() - exact.detach()).abs() <= step).all()
    if count > 1:
        assert (found.float() > exact.detach()).any()
        assert (found.float() < exact.detach()).any()


def test_adamw_rounds_by_chance_so_that_small_updates_add_up() -> None:
    """30 steps of a hundredth of a bfloat16's step below 1: the mean moves as float32 would."""
    weights, slopes = torch.ones(4000).bfloat16(), [torch.ones(4000).bfloat16()] * 30
    settings = {"lr": 4e-5, "weight_decay": 0.0}
    torch.manual_seed(0)
    with triton_in_use():
        found = adamw_steps(weights, slopes, **settings)
    moved = 1 - found.float().mean().item()
    assert moved == pytest.approx(1.2e-3, rel=0.15)  # about five deviations of the mean


def test_adamw_repeats_by_its_seed() -> None:
    weights, slopes = torch.ones(500).bfloat16(), [numbers(500).bfloat16()] * 2
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        with triton_in_use():
            found.append(adamw_steps(weights, slopes, lr=1e-3))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_adamw_keeps_what_is_infinite() -> None:
    from luthier.kernels.triton import adamw

    weight, slope = torch.ones(3).bfloat16(), torch.tensor([1.0, torch.inf, torch.nan]).bfloat16()
    mean, square = torch.zeros(3).bfloat16(), torch.zeros(3).bfloat16()
    adamw.update(
        weight, slope, mean, square, step=1, lr=0.1, betas=(0.9, 0.999), eps=1e-8,
        weight_decay=0.0, seed=1,
    )  # fmt: skip
    assert mean[0].isfinite()
    assert mean[1].isinf()
    assert mean[2].isnan()


def adapted(family: str, **changes: Any) -> PeftModel:
    chosen = {"lora_dropout": 0.0, "lora_r": 4, "lora_alpha": 8} | changes
    model = attach_adapter(make_model(family, 96), MethodGroup(**chosen))
    fill_up(model)
    return model


@pytest.mark.parametrize(
    ("family", "method"),
    [
        ("llama", "lora"),
        ("qwen3", "full"),
        ("gemma2", "lora"),
        ("gemma3", "full"),
        ("mixtral", "lora"),
    ],
)
def test_families_agree_with_the_reference(family: str, method: str) -> None:
    """The model's own forward and backward with all kernels, against none of ours."""
    made = [adapted(family) if method == "lora" else make_model(family, 96) for _ in range(2)]
    batch = collate([[row] for row in random_rows(2)])
    found = []
    for model, wanted in zip(made, (True, False), strict=True):
        chosen = KernelsGroup(**dict.fromkeys(KernelsGroup.model_fields, wanted))
        with interpreting():
            fast = install_checked(model.eval(), chosen)
            assert not any(said.startswith(("triton:", "all:")) for said in fast.missing)
            loss = loss_sum(model, batch, head=fast.head)
            found.append((loss.item(), gradients(model, loss)))
        remove(model, fast)
    assert found[0][0] == pytest.approx(found[1][0], rel=2e-5)
    for name, reference in found[1][1].items():
        assert (found[0][1][name] - reference).norm() <= 5e-5 * reference.norm() + 1e-6, name


@pytest.mark.parametrize(
    ("module", "name"),
    [("norm", "rms_norm.forward"), ("silu", "gate.backward"), ("loss", "cross_entropy.losses_"),
     ("rotary", "rotary.rotate"), ("dropout", "dropout.drop"), ("AdamW", "adamw.update")],
)  # fmt: skip
def test_a_kernel_that_is_wrong_is_not_used(
    module: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from importlib import import_module

    from luthier.kernels.triton import switch

    file, function = name.split(".")
    where = import_module(f"luthier.kernels.triton.{file}")
    right = getattr(where, function)

    def wrong(*args: Any, **kwargs: Any) -> Any:
        if function == "update":
            return None
        if function == "drop":
            return args[0]
        found = right(*args, **kwargs)
        first, *more = found if isinstance(found, tuple) else (found,)
        return (first * 1.2, *more) if more else first * 1.2

    monkeypatch.setattr(where, function, wrong)
    model = make_model("llama", 96)
    with interpreting():
        fast = install_checked(model, KernelsGroup())
        assert not switch._enabled
    (said,) = fast.missing
    assert said.startswith("triton: its ")
    assert module in said
    remove(model, fast)


def test_the_switch_and_a_device_without_triton() -> None:
    from luthier.kernels.triton import switch

    model = make_model("llama", 96)
    with interpreting():
        fast = install_checked(model, KernelsGroup(triton=False))
        assert not switch._enabled
        remove(model, fast)
    assert install_checked(model, KernelsGroup()).missing == []  # a CPU has none, and needs no note
    assert not switch._enabled


class TestLiger:
    """The same arithmetic as Liger's kernels, in float32."""

    @pytest.fixture(autouse=True)
    def liger(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("liger_kernel.ops", reason="liger-kernel is not installed")
        # Its kernels take numbers for tensors, which they are when compiled, not when interpreted.
        from triton.runtime import interpreter

        convert = interpreter._implicit_cvt

        def tensor_of(value: Any) -> Any:
            if not isinstance(value, float):
                return convert(value)
            kind = interpreter.tl.float32
            handle = interpreter.TensorHandle(np.array([value], np.float32), kind)
            return interpreter.tl.tensor(handle, kind)

        monkeypatch.setattr(interpreter, "_implicit_cvt", tensor_of)
        # Functions of NVIDIA's library, which a CPU does not have.
        tl = interpreter.tl
        monkeypatch.setattr("liger_kernel.ops.rms_norm.rsqrt", lambda x: 1 / tl.sqrt(x))
        monkeypatch.setattr("liger_kernel.ops.geglu.tanh", lambda x: 2 * tl.sigmoid(2 * x) - 1)

    def same(self, ours: Callable[..., Any], theirs: Callable[..., Any], *inputs: Tensor) -> None:
        with triton_in_use():
            found = results(ours, *inputs)
        for one, other in zip(found, results(theirs, *inputs), strict=True):
            assert torch.allclose(one, other, atol=2e-5, rtol=1e-4)

    def test_norm(self) -> None:
        from liger_kernel.ops.rms_norm import LigerRMSNormFunction

        self.same(
            lambda x, w: rms_norm(x, w, 1e-6),
            lambda x, w: LigerRMSNormFunction.apply(x, w, 1e-6, 0.0, "llama", False),
            numbers(5, 33),
            numbers(33, seed=1),
        )

    def test_gates(self) -> None:
        from liger_kernel.ops.geglu import LigerGELUMulFunction
        from liger_kernel.ops.swiglu import LigerSiLUMulFunction

        for kind, theirs in (("silu", LigerSiLUMulFunction), ("gelu_tanh", LigerGELUMulFunction)):
            self.same(
                lambda g, u, kind=kind: gated(g, u, kind),
                theirs.apply,
                numbers(3, 37),
                numbers(3, 37, seed=1),
            )

    def test_rotation(self) -> None:
        from liger_kernel.ops.rope import LigerRopeFunction

        angles = numbers(1, 5, 4).repeat(1, 1, 2)
        cos, sin = angles.cos(), angles.sin()
        self.same(
            lambda q, k: rotate_both(q, k, cos[:, None], sin[:, None]),
            lambda q, k: LigerRopeFunction.apply(q, k, cos, sin),
            numbers(1, 6, 5, 8),
            numbers(1, 2, 5, 8, seed=1),
        )

    def test_losses(self) -> None:
        from liger_kernel.ops.cross_entropy import LigerCrossEntropyFunction

        targets = torch.tensor([3, 0, 36])
        self.same(
            lambda h, w: head_loss(h, w, None, targets, None),
            lambda h, w: LigerCrossEntropyFunction.apply(
                h @ w.t(), targets, None, -100, 0.0, 0.0, "sum"
            )[0],
            numbers(3, 9),
            numbers(37, 9, seed=1),
        )
