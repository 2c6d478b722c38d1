"""Dropout by counter: whether a number stays is a function of the seed and of its index alone.

Philox 4x32 with 10 rounds (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") gives four
numbers for the seed and a counter. The mask is nowhere in memory, and it is the same in the forward,
in the backward and when a layer is computed again, on every device and in every dtype.
"""

import torch
from torch import Tensor

from luthier.kernels.triton.lang import tl, triton
from luthier.kernels.triton.launch import launch

BLOCK = 512  # counters of a program, which has four times as many numbers


@triton.jit
def _drop(values, dropped, count, seed, rate, BLOCK: tl.constexpr):
    counter = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    # The four numbers of a counter are BLOCK apart, so that neighbours in memory stay neighbours.
    first = tl.program_id(0).to(tl.int64) * BLOCK * 4 + tl.arange(0, BLOCK)
    chances = tl.rand4x(seed, counter)
    for part in tl.static_range(4):
        place = first + part * BLOCK
        inside = place < count
        numbers = tl.load(values + place, mask=inside, other=0.0)
        kept = tl.where(chances[part] >= rate, numbers, 0.0).to(dropped.dtype.element_ty)
        tl.store(dropped + place, kept, mask=inside)


def drop(values: Tensor, rate: float, seed: int, *, in_place: bool = False) -> Tensor:
    """``values`` with a share of ``rate`` set to nought, not scaled; ``seed`` is below 2⁶³."""
    values = values.contiguous()
    dropped = values if in_place else torch.empty_like(values)
    count = values.numel()
    grid = (triton.cdiv(count, 4 * BLOCK),)
    launch(_drop, grid, values, dropped, count=count, seed=seed, rate=rate, BLOCK=BLOCK)
    return dropped
