"""One update of bfloat16 weights by AdamW in one pass: 14 bytes of memory traffic a weight.

The arithmetic is that of ``train/bf16_adamw.py``, in float32; what is stored is rounded by chance (see
``rounding.py``), by Philox of the seed and of the weight's index.
"""

from torch import Tensor

from luthier.kernels.triton.lang import tl, triton
from luthier.kernels.triton.launch import launch

_BLOCK = 1024


@triton.jit
def _rounded(values, random):
    # Bits below bfloat16's are the fraction of a step; adding a random one carries by that chance.
    bits = values.to(tl.uint32, bitcast=True)
    up = (bits + (random & 0xFFFF)) & 0xFFFF0000
    # What is infinite or no number stays so: its bits may not carry.
    finite = (bits & 0x7F800000) != 0x7F800000
    return tl.where(finite, up, bits).to(tl.float32, bitcast=True).to(tl.bfloat16)


@triton.jit
def _update(
    weight, slope, mean, square, count, seed,
    keeps_first, first, keeps_second, second, decay, rate, correction, eps,
    BLOCK: tl.constexpr,
):  # fmt: skip
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    g = tl.load(slope + place, mask=inside, other=0.0).to(tl.float32)
    m = tl.load(mean + place, mask=inside, other=0.0).to(tl.float32)
    v = tl.load(square + place, mask=inside, other=0.0).to(tl.float32)
    w = tl.load(weight + place, mask=inside, other=0.0).to(tl.float32)
    m = m * keeps_first + g * first
    v = v * keeps_second + g * g * second
    w = w * decay - rate * m / (tl.sqrt(v / correction) + eps)
    one, two, three, _ = tl.randint4x(seed, tl.program_id(0) * BLOCK + tl.arange(0, BLOCK))
    tl.store(weight + place, _rounded(w, one), mask=inside)
    tl.store(mean + place, _rounded(m, two), mask=inside)
    tl.store(square + place, _rounded(v, three), mask=inside)


def update(
    weight: Tensor,
    slope: Tensor,
    mean: Tensor,
    square: Tensor,
    *,
    step: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    seed: int,
) -> None:
    """Change ``weight`` and its two means (bfloat16, contiguous) by its gradient ``slope``, in place.

    ``step`` counts from 1.
    """
    first, second = betas
    count = weight.numel()
    launch(
        _update, (triton.cdiv(count, _BLOCK),), weight, slope.contiguous(), mean, square,
        count=count, seed=seed, keeps_first=first, first=1 - first, keeps_second=second,
        second=1 - second, decay=1 - lr * weight_decay, rate=lr / (1 - first**step),
        correction=1 - second**step, eps=eps, BLOCK=_BLOCK,
    )  # fmt: skip
