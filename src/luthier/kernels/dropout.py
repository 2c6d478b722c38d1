"""Dropout by a seed, which finds its mask again in the backward and when a layer is computed again.

On a processor masks are windows of one table of random bits: PyTorch's CPU generator takes longer for a
mask than the product that the mask is for. Each number of the table is drawn once, and a seed says where
in it the mask of each group of rows begins. The numbers of a window are independent of each other; two
masks share some only where their windows overlap, and then in other places.

Elsewhere a mask is drawn by a counter: in Triton's kernel (``triton/dropout.py``), and without Triton by
PyTorch's generator of the device, seeded anew. That is two launches, where windows would be one or two
for each 2¹⁹ numbers.
"""

import random
from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

from luthier.kernels.triton.switch import fused, is_gpu

_TABLE, _WINDOW = 2**20, 2**19  # numbers in the table, and at most in one window


def new_seed(values: Tensor) -> int:
    """A seed from PyTorch's own generator, so that resuming and recomputation draw it again."""
    if isinstance(values, FakeTensor) or values.is_meta:  # a simulated step has sizes only
        return 0
    return int(torch.randint(2**62, ()))


def drop(values: Tensor, rate: float, seed: int) -> Tensor:
    """``values`` (rows, columns) with a share of ``rate`` set to nought; not scaled by 1 / (1 - rate).

    Equal seeds, shapes and rates drop the same ones in every dtype. A processor, Triton's kernel and
    another device's generator drop different ones; so do the generators of two kinds of GPU.
    """
    if fused(values):
        from luthier.kernels.triton import dropout

        return dropout.drop(values, rate, seed)
    if not has_table(values.device):
        return values.masked_fill(_dropped(values, rate, seed), 0.0)
    dropped = torch.empty_like(values, memory_format=torch.contiguous_format)
    whole = _whole(values.dtype)
    for rows, kept in _windows(values, rate, seed):
        torch.bitwise_and(
            values[rows].contiguous().view(whole), kept, out=dropped[rows].view(whole)
        )
    return dropped


def drop_(values: Tensor, rate: float, seed: int) -> Tensor:
    """``drop`` in place; ``values`` lie in order."""
    if fused(values):
        from luthier.kernels.triton import dropout

        return dropout.drop(values, rate, seed, in_place=True)
    if not has_table(values.device):
        return values.masked_fill_(_dropped(values, rate, seed), 0.0)
    for rows, kept in _windows(values, rate, seed):
        values[rows].view(kept.dtype).bitwise_and_(kept)
    return values


def has_table(device: torch.device) -> bool:
    """Whether masks on ``device`` are windows of the table."""
    return device.type == "cpu" and not is_gpu(device)


def table(rate: float, dtype: torch.dtype) -> Tensor:
    """The random bits for values of ``dtype``, which stay in memory from the first use on."""
    return _table(rate, _whole(dtype))


def _dropped(values: Tensor, rate: float, seed: int) -> Tensor:
    """Which of ``values`` to drop, by a generator of their device; it drops the same in every dtype."""
    mask = torch.empty(values.shape, dtype=torch.bool, device=values.device)
    if isinstance(values, FakeTensor) or values.is_meta:
        return mask.bernoulli_(rate)
    return mask.bernoulli_(rate, generator=torch.Generator(values.device).manual_seed(seed))


def _windows(values: Tensor, rate: float, seed: int) -> Iterator[tuple[slice, Tensor]]:
    """Groups of rows of ``values``, and for each the bits that keep or drop its numbers."""
    if isinstance(values, FakeTensor) or values.is_meta:
        return
    rows, columns = values.shape
    bits = table(rate, values.dtype)
    places = random.Random(seed)  # noqa: S311
    group = max(1, _WINDOW // columns)
    for first in range(0, rows, group):
        count = min(group, rows - first)
        start = places.randrange(_TABLE - count * columns)
        window = bits[start : start + count * columns].view(count, columns)
        yield slice(first, first + count), window


def _whole(dtype: torch.dtype) -> torch.dtype:
    return {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]


@lru_cache(maxsize=4)
def _table(rate: float, dtype: torch.dtype) -> Tensor:
    """Integers with all bits set where a value is kept: dropping is a mere `and`."""
    chances = torch.empty(_TABLE).uniform_(generator=torch.Generator().manual_seed(0))
    return (chances >= rate).to(dtype).neg_()
