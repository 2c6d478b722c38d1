"""Rotary position embeddings in three passes, with nothing kept but the angles.

q' = q · cos + rotate(q) · sin,   rotate((a, b)) = (-b, a)          (Su et al. 2021)
"""

import sys
from typing import Any

import torch
from torch import Tensor, nn

from luthier.kernels.triton.switch import fused


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """``x`` (1, heads, T, d) turned by the angles whose ``cos`` and ``sin`` are (1, 1, T, d)."""
    half = x.shape[-1] // 2
    turned = x * cos
    turned[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-1)
    turned[..., half:].addcmul_(x[..., :half], sin[..., half:])
    return turned.to(x.dtype)


def rotate_both(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """``rotate`` of queries and keys, with a gradient."""
    turned: tuple[Tensor, Tensor] = _Rotary.apply(query, key, cos, sin)
    return turned


class _Rotary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> Any:
        ctx.save_for_backward(cos, sin)
        return _turn_both(query, key, cos, sin, back=False)

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> Any:
        cos, sin = ctx.saved_tensors
        # A rotation's transpose turns the other way: both halves have the same angles.
        return *_turn_both(upstream[0], upstream[1], cos, sin, back=True), None, None


def _turn_both(
    query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, *, back: bool
) -> tuple[Tensor, Tensor]:
    if fused(query):
        from luthier.kernels.triton import rotary

        return rotary.rotate(query, key, cos, sin, back=back)
    sin = -sin if back else sin
    return rotate(query, cos, sin), rotate(key, cos, sin)


def _replacement(original: Any) -> Any:
    def apply_rotary_pos_emb(
        q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1, **more: Any
    ) -> Any:
        halves = q.shape[-1] == cos.shape[-1] and k.shape[-1] == cos.shape[-1]
        if more or not halves or not torch.is_grad_enabled():
            return original(q, k, cos, sin, unsqueeze_dim=unsqueeze_dim, **more)
        return rotate_both(q, k, cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim))

    apply_rotary_pos_emb.original = original  # type: ignore[attr-defined]
    return apply_rotary_pos_emb


def install(model: nn.Module) -> int:
    """Use it in the modules that define the attention layers of ``model``, where it is equal.

    Transformers' layers call a function of their own file, so it is replaced there, for all models
    of that architecture in this process.
    """
    found = 0
    for name in {type(module).__module__ for module in model.modules()}:
        source: Any = sys.modules[name]
        original = getattr(source, "apply_rotary_pos_emb", None)
        if original is None:
            continue
        if hasattr(original, "original"):
            found += 1
        elif _agrees(original):
            source.apply_rotary_pos_emb = _replacement(original)
            found += 1
    return found


def _agrees(original: Any) -> bool:
    """Whether the architecture's own function is the plain one, tried on numbers."""
    numbers = torch.linspace(-1, 1, 2 * 3 * 8)
    q, k = numbers.view(1, 2, 3, 8), numbers.flip(0).view(1, 2, 3, 8)
    angles = torch.linspace(0, 3, 12).view(1, 3, 4).repeat(1, 1, 2)
    try:
        theirs = original(q, k, angles.cos(), angles.sin())
    except (TypeError, RuntimeError):
        return False
    ours = [rotate(x, angles.cos()[:, None], angles.sin()[:, None]) for x in (q, k)]
    return all(torch.allclose(a, b, atol=1e-6) for a, b in zip(ours, theirs, strict=True))
