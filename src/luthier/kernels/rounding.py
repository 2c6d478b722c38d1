"""Stochastic rounding to bfloat16: up or down by chance, so that the mean is the number itself.

Near 1 a bfloat16 moves in steps of 1/128. A weight that is changed by a tenth of a step would never
change, rounded to the nearest; rounded by chance it moves in one of ten updates (Gupta et al. 2015;
Zamirai et al. 2020, "Revisiting BFloat16 Training").
"""

import random
from functools import lru_cache

import torch
from torch import Tensor

_TABLE = 2**20
PIECE = 2**19  # numbers rounded at once, at most


def round_into(target: Tensor, values: Tensor, places: random.Random) -> None:
    """Round float32 ``values`` (n,), at most ``PIECE``, into bfloat16 ``target`` (n,).

    ``values`` are used up: they hold the rounded numbers afterwards. ``places`` says where in a table
    of random numbers to begin.
    """
    start = places.randrange(_TABLE - len(values))
    # Bits below bfloat16's are the fraction of a step; adding a random one carries by that chance.
    bits = values.view(torch.int32)
    bits.add_(_fractions(values.device)[start : start + len(values)]).bitwise_and_(-(1 << 16))
    target.copy_(values)


@lru_cache(maxsize=2)
def _fractions(device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    drawn = torch.randint(1 << 16, (_TABLE,), dtype=torch.int32, generator=generator)
    return drawn.to(device)
