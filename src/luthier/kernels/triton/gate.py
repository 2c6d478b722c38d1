"""SwiGLU and GeGLU, act(gate) · up, and both gradients in one pass: see ``gated.py``."""

import torch
from torch import Tensor

from luthier.kernels.triton.lang import tl, triton
from luthier.kernels.triton.launch import launch

_BLOCK = 1024


@triton.jit
def _tanh(x):
    # Of the magnitude, so that no exponential overflows.
    small = tl.exp(-2.0 * tl.abs(x))
    size = (1.0 - small) / (1.0 + small)
    return tl.where(x < 0, -size, size)


@triton.jit
def _bent(g):
    # Of GELU's tanh form (Hendrycks and Gimpel 2016): tanh(sqrt(2 / pi) (g + 0.044715 g³)).
    return _tanh(0.7978845608028654 * (g + 0.044715 * g * g * g))


@triton.jit
def _forward(gate, up, product, count, SILU: tl.constexpr, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    g = tl.load(gate + place, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(up + place, mask=inside, other=0.0).to(tl.float32)
    active = g * tl.sigmoid(g) if SILU else 0.5 * g * (1.0 + _bent(g))
    tl.store(product + place, (active * u).to(product.dtype.element_ty), mask=inside)


@triton.jit
def _backward(
    slope, gate, up, for_gate, for_up, count, SILU: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    s = tl.load(slope + place, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(gate + place, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(up + place, mask=inside, other=0.0).to(tl.float32)
    if SILU:
        chance = tl.sigmoid(g)
        active = g * chance
        rate = chance * (1.0 + g * (1.0 - chance))
    else:
        bent = _bent(g)
        active = 0.5 * g * (1.0 + bent)
        inner = 0.7978845608028654 * (1.0 + 0.134145 * g * g)
        rate = 0.5 * (1.0 + bent) + 0.5 * g * (1.0 - bent * bent) * inner
    tl.store(for_up + place, (s * active).to(for_up.dtype.element_ty), mask=inside)
    tl.store(for_gate + place, (s * u * rate).to(for_gate.dtype.element_ty), mask=inside)


def forward(gate: Tensor, up: Tensor, kind: str) -> Tensor:
    """``act(gate) * up`` of equal shapes; ``kind`` is silu or gelu_tanh."""
    gate, up = gate.contiguous(), up.contiguous()
    product = torch.empty_like(gate)
    _run(_forward, kind, gate, up, product)
    return product


def backward(slope: Tensor, gate: Tensor, up: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """The gradients of the gate and of what it is multiplied with."""
    slope, gate, up = slope.contiguous(), gate.contiguous(), up.contiguous()
    for_gate, for_up = torch.empty_like(gate), torch.empty_like(up)
    _run(_backward, kind, slope, gate, up, for_gate, for_up)
    return for_gate, for_up


def _run(kernel: object, kind: str, *tensors: Tensor) -> None:
    count = tensors[0].numel()
    grid = (triton.cdiv(count, _BLOCK),)
    launch(kernel, grid, *tensors, count=count, SILU=kind == "silu", BLOCK=_BLOCK)
