"""Root mean square norm that keeps its input and one number per token for the backward.

    y = x / sqrt(mean(x²) + eps) · w          (Zhang and Sennrich 2019)

Transformers' modules compute it as a chain of float32 operations, each of which keeps its result.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from luthier.kernels.compiling import compilable
from luthier.kernels.triton.switch import fused


def rms_norm(x: Tensor, weight: Tensor, eps: float, plus: float = 0.0) -> Tensor:
    """The norm of ``x`` (…, H) in its dtype, computed in float32, times ``weight`` (H,) + ``plus``."""
    if plus and not fused(x):
        weight, plus = plus + weight.float(), 0.0
    output: Tensor = _RMSNorm.apply(x, weight, eps, plus)
    return output


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, plus: float) -> Tensor:
        width = x.shape[-1]
        ctx.fused, ctx.plus = fused(x), plus
        if ctx.fused:
            from luthier.kernels.triton import rms_norm

            # Heads, as layers turn them, are taken as they lie: (batch, T, heads, d).
            ctx.turned = x.dim() == 4 and not x.is_contiguous()
            lying = x.transpose(1, 2) if ctx.turned else x
            rows = lying.reshape(-1, width).contiguous()
            y, rows, scale = rms_norm.forward(rows, weight, eps, plus=plus)
            ctx.save_for_backward(rows, weight, scale)
            y = y.view(lying.shape)
            return y.transpose(1, 2) if ctx.turned else y
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        scale = norm.square_().div_(width).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> tuple[Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        slope = upstream[0]
        if ctx.fused:
            from luthier.kernels.triton import rms_norm

            lying = slope.transpose(1, 2) if ctx.turned else slope
            slopes = lying.reshape(x.shape).contiguous()
            of_rows, for_weight = rms_norm.backward(
                slopes, x, weight, scale, weighs=ctx.needs_input_grad[1], plus=ctx.plus
            )
            of_rows = of_rows.view(lying.shape)
            return of_rows.transpose(1, 2) if ctx.turned else of_rows, for_weight, None, None
        for_weight = None
        if ctx.needs_input_grad[1]:
            summed = (slope * (x * scale)).sum(tuple(range(x.dim() - 1)))
            for_weight = summed.to(weight.dtype)
        for_x = None
        if ctx.needs_input_grad[0]:
            for_x = _slope_of_input(slope, x, weight, scale)
        return for_x, for_weight, None, None


@compilable
def _slope_of_input(slope: Tensor, x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """dx = s (g w - n mean(g w n)), with n = x s the normed input."""
    normed = x * scale
    through = torch.mul(slope, weight, out=torch.empty_like(normed))
    share = torch.linalg.vecdot(through, normed).div_(x.shape[-1])[..., None]
    return through.addcmul_(normed, share, value=-1).mul_(scale).to(x.dtype)


def install(model: nn.Module) -> list[nn.Module]:
    """Use it in all norms of ``model`` that it equals, and name those."""
    forms: dict[type, Callable[[nn.Module], Callable[[Tensor], Tensor]] | None] = {}
    changed: list[nn.Module] = []
    for module in model.modules():
        kind = type(module)
        if not kind.__name__.endswith("RMSNorm") or not hasattr(module, "weight"):
            continue
        if kind not in forms:
            forms[kind] = next((f for f in (_plain, _one_more) if _agrees(module, f)), None)
        form = forms[kind]
        if form is not None:
            module.forward = form(module)
            changed.append(module)
    return changed


def plain_eps(module: nn.Module) -> float | None:
    """Of a norm that is the plain one, Llama's; None for another."""
    named = type(module).__name__.endswith("RMSNorm") and hasattr(module, "weight")
    return _eps(module) if named and _agrees(module, _plain) else None


def _eps(module: Any) -> float:
    return float(getattr(module, "variance_epsilon", getattr(module, "eps", 0.0)))


def _plain(module: Any) -> Callable[[Tensor], Tensor]:
    eps = _eps(module)
    return lambda x: rms_norm(x, module.weight, eps)


def _one_more(module: Any) -> Callable[[Tensor], Tensor]:
    """Gemma's: the weight is kept less one."""
    eps = _eps(module)
    return lambda x: rms_norm(x, module.weight, eps, plus=1.0)


@torch.no_grad()
def _agrees(module: nn.Module, form: Callable[[nn.Module], Callable[[Tensor], Tensor]]) -> bool:
    """Whether ``form`` computes what the module does, tried on a copy with a weight of its own."""
    probe = copy.copy(module)
    vars(probe).pop("forward", None)  # ours, where it was put in before
    probe._parameters = {"weight": nn.Parameter(torch.linspace(0.5, 1.5, 8))}
    x = torch.linspace(-2, 2, 24).view(3, 8)
    return torch.allclose(form(probe)(x), probe(x), rtol=1e-5, atol=1e-6)
