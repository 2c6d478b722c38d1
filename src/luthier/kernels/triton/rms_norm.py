"""Root mean square norm, and the sum of two tensors before it where there is one: see ``norm.py``."""

import torch
from torch import Tensor

from luthier.kernels.triton.lang import tl, triton
from luthier.kernels.triton.launch import launch

_PROGRAMS = 512  # of the backward, each of which sums the gradient of the weight over its rows


@triton.jit
def _forward(
    x, weight, other, total, y, scales, width, eps, plus,
    ADDS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    place = row * width + columns
    numbers = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    if ADDS:
        numbers += tl.load(other + place, mask=inside, other=0.0).to(tl.float32)
        # The norm is of what the sum is kept as.
        kept = numbers.to(total.dtype.element_ty)
        tl.store(total + place, kept, mask=inside)
        numbers = kept.to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(numbers * numbers, axis=0) / width + eps)
    tl.store(scales + row, scale)
    w = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32) + plus
    tl.store(y + place, (numbers * scale * w).to(y.dtype.element_ty), mask=inside)


@triton.jit
def _backward(
    slope, x, weight, scales, more, for_x, for_weight, rows, width, plus,
    HAS_MORE: tl.constexpr, WEIGHS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    program, programs = tl.program_id(0), tl.num_programs(0)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    w = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32) + plus
    summed = tl.zeros([BLOCK], dtype=tl.float32)
    for row in range(program, rows, programs):
        place = tl.cast(row, tl.int64) * width + columns
        g = tl.load(slope + place, mask=inside, other=0.0).to(tl.float32)
        numbers = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
        scale = tl.load(scales + row)
        normed = numbers * scale
        if WEIGHS:
            summed += g * normed
        through = g * w
        share = tl.sum(through * normed, axis=0) / width
        result = (through - normed * share) * scale
        if HAS_MORE:
            result += tl.load(more + place, mask=inside, other=0.0).to(tl.float32)
        tl.store(for_x + place, result.to(for_x.dtype.element_ty), mask=inside)
    if WEIGHS:
        tl.store(for_weight + program * width + columns, summed, mask=inside)


def forward(
    x: Tensor, weight: Tensor, eps: float, other: Tensor | None = None, *, plus: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """The norm of ``x`` (rows, width), or of ``x + other``; that sum, or x; and 1 / its root mean square.

    The norm is weighed by ``weight + plus``. The last is float32 (rows,).
    """
    rows, width = x.shape
    dtype = x.dtype if other is None else torch.promote_types(x.dtype, other.dtype)
    y, scales = torch.empty_like(x, dtype=dtype), x.new_empty(rows, dtype=torch.float32)
    total = x if other is None else torch.empty_like(y)
    block = triton.next_power_of_2(width)
    launch(
        _forward, (rows,), x, weight, x if other is None else other, total, y, scales,
        width=width, eps=eps, plus=plus, ADDS=other is not None,
        BLOCK=block, num_warps=_warps(block),
    )  # fmt: skip
    return y, total, scales


def backward(
    slope: Tensor,
    x: Tensor,
    weight: Tensor,
    scales: Tensor,
    *,
    weighs: bool,
    more: Tensor | None = None,
    plus: float = 0.0,
) -> tuple[Tensor, Tensor | None]:
    """The gradients of x, that of the sum (``more``) added, and, where ``weighs``, of the weight."""
    rows, width = x.shape
    programs = min(rows, _PROGRAMS)
    for_x = torch.empty_like(x)
    parts = x.new_empty(programs if weighs else 0, width, dtype=torch.float32)
    block = triton.next_power_of_2(width)
    launch(
        _backward, (programs,), slope, x, weight, scales, slope if more is None else more, for_x, parts,
        rows=rows, width=width, plus=plus, HAS_MORE=more is not None, WEIGHS=weighs,
        BLOCK=block, num_warps=_warps(block),
    )  # fmt: skip
    return for_x, parts.sum(0).to(weight.dtype) if weighs else None


def _warps(block: int) -> int:
    return max(4, min(32, block // 256))
