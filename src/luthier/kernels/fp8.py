"""Frozen weights in 8 bits, and products with them in 8 bits.

    y = s_x (x_8 W_8^T) s_W + b,    dL/dx = s_g (g_8 W_8) with g = dL/dy diag(s_W)

Numbers are float8_e4m3fn (Micikevicius et al. 2022, "FP8 Formats for Deep Learning"). Each row of x, of g
and of W has a scale of its own, its largest magnitude over 448, so that no row loses the numbers that
another one needs. W is stored so, once; x and g are put into 8 bits for a product. In the backward the
scales of W lie along the sum, where a product has no place for them: they go into g before its own are
taken. A GPU multiplies 8 bits with a second matrix that lies by columns: that is W^T as it is
stored, and for the backward a copy of W, made for one product and dropped, since to keep it would double
what W takes. What is not finite stays so, and makes its whole row non-finite.
"""

from collections.abc import Sequence
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luthier.kernels.autocast import autocast_dtype
from luthier.kernels.triton.switch import fused

DTYPE = torch.float8_e4m3fn
MOST = 448.0  # its largest number
LEAST = 1e-30  # of a row's largest magnitude: a row of noughts has a scale, too
MULTIPLE = 16  # of which a GPU needs the sides of W to be
_CHUNK = 2**24  # numbers of W that are put into 8 bits at once
_TOKENS = 24  # of a product that is tried
_CLOSE = 0.1  # of it: three bits of each number leave about 3%

Rows = tuple[Tensor, Tensor]  # in 8 bits (T, n), and their scales (T, 1)


class FP8Linear(nn.Linear):
    """A frozen linear layer whose weight (out, in) is in 8 bits: ``numbers``, with ``scale`` (out, 1).

    ``weight`` is what they stand for, made anew each time, for models that read it themselves.

    Args:
        weight: (out, in).
        device: where it is to be.

    Attributes:
        multiplies: whether products are made in 8 bits; else the weight is expanded for each, which is the
            reference.
    """

    scale: Tensor

    def __init__(self, weight: Tensor, bias: nn.Parameter | None, device: torch.device) -> None:
        nn.Module.__init__(self)  # that of a linear layer makes a weight
        self.out_features, self.in_features = weight.shape
        self.bias = bias  # type: ignore[assignment]
        self._dtype = weight.dtype
        stored = torch.empty(weight.shape, dtype=DTYPE, device=device)
        scale = torch.empty(len(weight), 1, device=device)
        if not stored.is_meta:
            at_once = max(1, _CHUNK // weight.shape[1])
            parts = (tensor.split(at_once) for tensor in (weight.detach(), stored, scale))
            for part, numbers, scales in zip(*parts, strict=True):
                # Without Triton, which may not be in use when a run goes on.
                for target, found in zip((numbers, scales), _in_rows(part.to(device)), strict=True):
                    target.copy_(found)
        self.numbers = nn.Parameter(stored, requires_grad=False)
        self.register_buffer("scale", scale, persistent=False)
        self.multiplies = False

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        return expanded(self, self._dtype)

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(autocast_dtype(x.device) or x.dtype)
        if not self.multiplies:
            bias = None if self.bias is None else self.bias.to(x.dtype)
            return F.linear(x, expanded(self, x.dtype), bias)
        output: Tensor = _Product.apply(x.reshape(-1, x.shape[-1]), self)
        return output.view(*x.shape[:-1], -1)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: FP8Linear) -> Tensor:
        ctx.layer = layer
        return product(in_rows(x), layer, x.dtype)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        return product_back(upstream[0], ctx.layer), None


def is_fp8(layer: Any) -> TypeGuard[FP8Linear]:
    """Whether the weight of ``layer`` is in 8 bits."""
    return isinstance(layer, FP8Linear)


def multiplies(layer: Any) -> TypeGuard[FP8Linear]:
    """Whether products with ``layer`` are to be made in 8 bits."""
    return is_fp8(layer) and layer.multiplies


def use_products(model: nn.Module, on: bool) -> list[FP8Linear]:
    """Make products in 8 bits from now on, or no longer; the layers of ``model`` that can."""
    found = [module for module in model.modules() if is_fp8(module)]
    for layer in found:
        layer.multiplies = on
    return found


@torch.no_grad()
def trouble(layers: Sequence[FP8Linear]) -> str | None:
    """Which products of ``layers``, one of each shape, are not those of the weights expanded; None for none."""
    for layer in {layer.numbers.shape: layer for layer in layers}.values():
        device, weight = layer.numbers.device, expanded(layer, torch.float32)
        x, slope = (_waves(width, device) for width in (layer.in_features, layer.out_features))
        bias = 0 if layer.bias is None else layer.bias.float()
        for where, found, exact in (
            ("forward", product(in_rows(x), layer, torch.bfloat16), x @ weight.t() + bias),
            ("backward", product_back(slope.bfloat16(), layer), slope @ weight),
        ):
            off = float((found.float() - exact).norm() / exact.norm())
            if not off <= _CLOSE:
                return f"{where} products with weights {tuple(weight.shape)} differ by {off:.0%}"
    return None


def _waves(width: int, device: torch.device) -> Tensor:
    """Numbers (tokens, ``width``) in no order, the same each time."""
    count = _TOKENS * width
    return torch.sin(torch.arange(count, device=device).view(_TOKENS, width) ** 1.5)


def expanded(layer: FP8Linear, dtype: torch.dtype) -> Tensor:
    """The weight (out, in) of ``layer`` in ``dtype``."""
    return layer.numbers.float().mul_(layer.scale).to(dtype)


def in_rows(x: Tensor, weights: Tensor | None = None) -> Rows:
    """``x`` (T, n), each column times its one of ``weights`` (n,), in 8 bits."""
    if fused(x):
        from luthier.kernels.triton import fp8

        return fp8.in_rows(x, weights)
    return _in_rows(x, weights)


def _in_rows(x: Tensor, weights: Tensor | None = None) -> Rows:
    numbers = x.float()
    if weights is not None:
        numbers = numbers * weights
    most = numbers.abs().amax(1, keepdim=True).clamp_min_(LEAST)
    return (numbers * (MOST / most)).to(DTYPE), most / MOST


def product(rows: Rows, layer: FP8Linear, dtype: torch.dtype) -> Tensor:
    """``x`` W^T + b (T, out) in ``dtype``, of the ``x`` (T, in) that ``rows`` are."""
    numbers, scales = rows
    output = _scaled(numbers, layer.numbers.t(), scales, layer.scale.t(), dtype)
    return output if layer.bias is None else output.add_(layer.bias)


def product_back(slope: Tensor, layer: FP8Linear) -> Tensor:
    """``slope`` W (T, in), of ``slope`` (T, out), in its dtype."""
    numbers, scales = in_rows(slope, layer.scale[:, 0])
    ones = layer.scale.new_ones(1, layer.in_features)
    return _scaled(numbers, by_columns(layer.numbers), scales, ones, slope.dtype)


def _scaled(
    left: Tensor, right: Tensor, of_left: Tensor, of_right: Tensor, dtype: torch.dtype
) -> Tensor:
    # Of scales by row some GPUs give bfloat16 alone. They sum in the tensor cores' own way: else it is slow.
    made = dtype if left.device.type == "cpu" else torch.bfloat16
    product: Tensor = torch._scaled_mm(
        left, right, of_left, of_right, out_dtype=made, use_fast_accum=True
    )
    return product.to(dtype)


def by_columns(weight: Tensor) -> Tensor:
    """A copy of ``weight`` whose columns lie in one piece."""
    if fused(weight):
        from luthier.kernels.triton import fp8

        return fp8.transposed(weight).t()
    return weight.t().contiguous().t()
