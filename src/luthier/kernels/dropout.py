"""Dropout by a seed: the mask is drawn again in the backward pass, and never kept."""

import numpy as np
import torch
from torch import Tensor
from torch._subclasses import FakeTensor

_STEPS = 2**16  # the rate is held to 1/65,536


def new_seed(values: Tensor) -> int:
    """A seed from PyTorch's own generator, so that resuming and recomputation draw it again."""
    if isinstance(values, FakeTensor):  # a simulated step has sizes only
        return 0
    return int(torch.randint(2**62, ()))


def draw_mask(values: Tensor, rate: float, seed: int) -> Tensor:
    """A mask for ``values`` (rows, columns), of which it needs the shape, for ``drop``.

    Equal seeds and shapes give equal masks, on every device.
    """
    # All bits set where a value is kept, so that dropping is a mere `and`: numbers above `most` are
    # dropped; clamping to its side of nought keeps the difference from overflowing.
    most = _STEPS // 2 - 1 - round(rate * _STEPS)
    drawn = _draw(values, seed)
    drawn = drawn.clamp_min_(0) if most >= 0 else drawn.clamp_max_(0)
    return drawn.sub_(most + 1).bitwise_right_shift_(15)


def drop(values: Tensor, mask: Tensor) -> Tensor:
    """``values`` where ``mask`` keeps them, else nought; the caller scales by 1 / (1 - rate)."""
    whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}[values.element_size()]
    kept = values.contiguous().view(whole).bitwise_and(mask.to(whole))
    return kept.view(values.dtype)


def _draw(values: Tensor, seed: int) -> Tensor:
    """A random int16 (rows, columns): a_i · c_j xor (b_i + d_j), of random numbers for each row and
    column.

    PyTorch's CPU generator takes 3.6 ns a number, more than the products that the mask is for; this
    takes 0.3. Rate, variance by rows and columns, pairs and rectangles of four are as those of
    independent numbers, which a test holds it to; a mask needs no more.
    """
    rows, columns = values.shape
    numbers = np.random.SFC64(seed).random_raw(rows + columns).view(np.int16).reshape(-1, 4)
    random = torch.from_numpy(numbers[:, :2].copy()).to(values.device)
    of_rows, of_columns = random[:rows, None], random[rows:]
    product = of_rows[..., 0].bitwise_or(1) * of_columns[:, 0]
    return product.bitwise_xor_(of_rows[..., 1] + of_columns[:, 1])
