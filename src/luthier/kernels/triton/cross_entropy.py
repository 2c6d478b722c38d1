"""Losses of logits, and their gradients in the logits' own memory: see ``kernels/head.py``.

The sum of exponentials is kept beside the largest logit as both are found (Milakov and Gimelshein 2018,
"Online normalizer calculation for softmax"), so that logits are read twice and written once.
"""

import torch
from torch import Tensor

from luthier.kernels.triton.gate import _tanh
from luthier.kernels.triton.lang import tl, triton
from luthier.kernels.triton.launch import launch

_MOST = 8192  # words at once


@triton.jit
def _losses(
    logits, targets, losses, weighs, words, stride, softcap,
    CAPPED: tl.constexpr, SLOPES: tl.constexpr, WEIGHED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    line = logits + row * stride
    target = tl.load(targets + row)
    largest = -float("inf")
    total = 0.0
    for start in range(0, words, BLOCK):
        word = start + tl.arange(0, BLOCK)
        inside = word < words
        x = tl.load(line + word, mask=inside, other=-float("inf")).to(tl.float32)
        if CAPPED:
            x = tl.where(inside, softcap * _tanh(x / softcap), -float("inf"))
        higher = tl.maximum(largest, tl.max(x, axis=0))
        total = total * tl.exp(largest - higher) + tl.sum(tl.exp(x - higher), axis=0)
        largest = higher
    normaliser = largest + tl.log(total)
    chosen = tl.load(line + target).to(tl.float32)
    if CAPPED:
        chosen = softcap * _tanh(chosen / softcap)
    tl.store(losses + row, normaliser - chosen)
    if SLOPES:
        weight = 1.0
        if WEIGHED:
            weight = tl.load(weighs + row)
        for start in range(0, words, BLOCK):
            word = start + tl.arange(0, BLOCK)
            inside = word < words
            x = tl.load(line + word, mask=inside, other=0.0).to(tl.float32)
            bent = 0.0
            if CAPPED:
                bent = _tanh(x / softcap)
                x = softcap * bent
            slope = tl.exp(x - normaliser) - tl.where(word == target, 1.0, 0.0)
            if CAPPED:
                slope *= 1.0 - bent * bent
            slope *= weight
            tl.store(line + word, slope.to(logits.dtype.element_ty), mask=inside)


def losses_(
    logits: Tensor,
    targets: Tensor,
    *,
    softcap: float | None,
    slopes: bool,
    scale: Tensor | None = None,
) -> Tensor:
    """The cross-entropies (S,), float32, of ``logits`` (S, words), whose rows lie in order.

    With ``slopes`` the logits become the gradient of the losses' sum, each weighed by ``scale`` (S,).
    """
    rows, words = logits.shape
    losses = logits.new_empty(rows, dtype=torch.float32)
    launch(
        _losses, (rows,), logits, targets, losses, losses if scale is None else scale,
        words=words, stride=logits.stride(0), softcap=softcap or 1.0, CAPPED=softcap is not None,
        SLOPES=slopes, WEIGHED=scale is not None,
        BLOCK=min(_MOST, triton.next_power_of_2(words)), num_warps=16,
    )  # fmt: skip
    return losses
