"""Rows of numbers in 8 bits, and a matrix of such turned round, in one pass each: see ``../fp8.py``."""

import torch
from torch import Tensor

from luthier.kernels.triton.lang import tl, triton
from luthier.kernels.triton.launch import launch

_BLOCK = 4096  # numbers of a row that are looked at together
_TILE = 64


@triton.jit
def _in_rows(
    x, weights, numbers, scales, width,
    WEIGHS: tl.constexpr, MOST: tl.constexpr, LEAST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    most = tl.zeros([BLOCK], dtype=tl.float32)
    for start in range(0, width, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < width
        values = tl.load(x + row * width + columns, mask=inside, other=0.0).to(tl.float32)
        if WEIGHS:
            values *= tl.load(weights + columns, mask=inside, other=0.0)
        # A maximum forgets what is no number; an infinite scale makes the row non-finite, too.
        size = tl.where(values == values, tl.abs(values), float("inf"))
        most = tl.maximum(most, size)
    largest = tl.maximum(tl.max(most, axis=0), LEAST)
    tl.store(scales + row, largest / MOST)
    factor = MOST / largest
    for start in range(0, width, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < width
        values = tl.load(x + row * width + columns, mask=inside, other=0.0).to(tl.float32)
        if WEIGHS:
            values *= tl.load(weights + columns, mask=inside, other=0.0)
        small = (values * factor).to(numbers.dtype.element_ty)
        tl.store(numbers + row * width + columns, small, mask=inside)


@triton.jit
def _turn(matrix, turned, rows, columns, TILE: tl.constexpr):
    down = tl.program_id(0) * TILE + tl.arange(0, TILE)
    across = tl.program_id(1) * TILE + tl.arange(0, TILE)
    inside = (down[:, None] < rows) & (across[None, :] < columns)
    place = down[:, None].to(tl.int64) * columns + across[None, :]
    tile = tl.load(matrix + place, mask=inside)
    place = across[:, None].to(tl.int64) * rows + down[None, :]
    tl.store(turned + place, tl.trans(tile), mask=tl.trans(inside))


def in_rows(x: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """``x`` (T, n) times ``weights`` (n,) in 8 bits, and the scales (T, 1)."""
    from luthier.kernels.fp8 import DTYPE, LEAST, MOST

    x = x.contiguous()
    rows, width = x.shape
    numbers, scales = torch.empty_like(x, dtype=DTYPE), x.new_empty(rows, 1, dtype=torch.float32)
    launch(
        _in_rows, (rows,), x, scales if weights is None else weights.contiguous(), numbers, scales,
        width=width, WEIGHS=weights is not None, MOST=MOST, LEAST=LEAST,
        BLOCK=min(_BLOCK, triton.next_power_of_2(width)),
    )  # fmt: skip
    return numbers, scales


def transposed(matrix: Tensor) -> Tensor:
    """``matrix`` (m, n) of 8-bit numbers as (n, m), in one piece."""
    rows, columns = matrix.shape
    turned = matrix.new_empty(columns, rows)
    grid = (triton.cdiv(rows, _TILE), triton.cdiv(columns, _TILE))
    bits = (tensor.view(torch.uint8) for tensor in (matrix.contiguous(), turned))
    launch(_turn, grid, *bits, rows=rows, columns=columns, TILE=_TILE)
    return turned
