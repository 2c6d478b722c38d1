"""Triton's kernels against PyTorch's operations, a few numbers each, on the device of a run."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from luthier.kernels import dropout, fp8
from luthier.kernels.gated import KINDS, gated
from luthier.kernels.head import head_loss
from luthier.kernels.norm import rms_norm
from luthier.kernels.rotary import rotate_both
from luthier.kernels.triton import adamw, switch

_ROWS, _WORDS = 24, 200
_RATE, _SEED = 0.25, 2**61 + 1


def trouble(
    device: torch.device, dtype: torch.dtype, width: int, in_8_bits: bool = False
) -> str | None:
    """What does not compute what its reference does, outputs and gradients; None where all do.

    Args:
        dtype: of the numbers.
        width: of a token's state.
        in_8_bits: whether numbers are put into 8 bits, too, which older cards cannot do.
    """
    numbers = torch.linspace(-2, 2, _ROWS * width, device=device).view(_ROWS, width)
    numbers = numbers.flip(1).to(dtype)
    weight = torch.linspace(0.5, 1.5, width, device=device).to(dtype)
    words = (torch.linspace(-1, 1, _WORDS * width, device=device).view(_WORDS, width) / width).to(
        dtype
    )
    targets = torch.arange(_ROWS, device=device) * 7 % _WORDS
    angles = torch.linspace(0, 3, _ROWS * 8, device=device).view(1, 1, _ROWS, 8).repeat(1, 1, 1, 2)
    heads = numbers[:, : width // 16 * 16].reshape(1, _ROWS, -1, 16).transpose(1, 2)
    tries: dict[str, tuple[Callable[..., Sequence[Tensor]], Sequence[Tensor]]] = {
        "norm": (lambda x, w: [rms_norm(x, w, 1e-6)], (numbers, weight)),
        "rotary": (lambda q, k: rotate_both(q, k, angles.cos(), angles.sin()), (heads, heads)),
        "loss": (lambda x, w: [head_loss(x, w, None, targets, 3.0)], (numbers, words)),
    }
    for kind in KINDS.values():
        tries[kind] = (lambda x, y, kind=kind: [gated(x, y, kind)], (numbers, numbers.flip(0)))
    tolerance = 1e-3 if dtype == torch.float32 else 0.05
    for name, (function, inputs) in tries.items():
        reference, found = (_results(function, inputs, on) for on in (False, True))
        for one, other in zip(found, reference, strict=True):
            off = (one.float() - other.float()).norm()
            if not bool(off <= tolerance * other.float().norm() + 1e-6):
                return f"its {name} differs from PyTorch's"
    if in_8_bits and not _rounds(numbers):
        return "its 8-bit numbers differ from PyTorch's"
    if not _drops(numbers):
        return "its dropout does not drop what it should"
    return None if _updates(device) else "its AdamW differs from PyTorch's"


def _results(
    function: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor], on: bool
) -> list[Tensor]:
    """The function's outputs, and the gradients of the sum of their squares."""
    switch.enable(on)
    try:
        leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
        outputs = function(*leaves)
        total = torch.stack([output.float().square().sum() for output in outputs]).sum()
        return [output.detach() for output in outputs] + list(torch.autograd.grad(total, leaves))
    finally:
        switch.enable(False)


def _rounds(values: Tensor) -> bool:
    """Whether 8-bit numbers, their scales and a matrix of them turned round are PyTorch's."""
    weights = torch.linspace(0.5, 1.5, values.shape[1], device=values.device)
    found = []
    for on in (True, False):
        switch.enable(on)
        try:
            numbers, scales = fp8.in_rows(values, weights)
            found.append((numbers.float() * scales, fp8.by_columns(numbers).float() * scales))
        finally:
            switch.enable(False)
    return all(
        bool((one - other).norm() <= 0.01 * other.norm()) for one, other in zip(*found, strict=True)
    )


def _drops(values: Tensor) -> bool:
    """Whether a mask comes again by its seed, in place too, and drops about its share."""
    switch.enable(True)
    try:
        ones = torch.ones_like(values)
        masks = [dropout.drop(ones, _RATE, _SEED), dropout.drop_(ones.clone(), _RATE, _SEED)]
        other = dropout.drop(ones, _RATE, _SEED + 1)
    finally:
        switch.enable(False)
    deviation = (_RATE * (1 - _RATE) / ones.numel()) ** 0.5
    share = 1 - float(masks[0].float().mean())
    same = bool((masks[0] == masks[1]).all()) and not bool((masks[0] == other).all())
    return same and abs(share - _RATE) < 6 * deviation


def _updates(device: torch.device) -> bool:
    """Whether a first step, which is that of the gradient's sign, is rounded to a neighbour."""
    weight = torch.linspace(-2, 2, 1000, device=device).bfloat16()
    slope = torch.linspace(1, -1, 1000, device=device).bfloat16()
    expected = weight.float() * (1 - 0.01 * 0.1) - 0.01 * slope.float() / (
        slope.float().abs() + 1e-8
    )
    mean, square = torch.zeros_like(weight), torch.zeros_like(weight)
    adamw.update(
        weight, slope, mean, square, step=1, lr=0.01, betas=(0.9, 0.999), eps=1e-8,
        weight_decay=0.1, seed=_SEED,
    )  # fmt: skip
    off = (weight.float() - expected).abs()
    return bool((off <= expected.abs() / 128 + 1e-3).all())
