"""The gate of a feed-forward layer, act(gate) · up, that keeps its two inputs and nothing else.

SwiGLU and GeGLU (Shazeer 2020). The product is formed again in the backward.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2CLS

from luthier.kernels.compiling import compilable
from luthier.kernels.triton.switch import fused


def gated(gate: Tensor, up: Tensor, kind: str) -> Tensor:
    """``act(gate) * up`` (…, I); ``kind`` is silu or gelu_tanh."""
    product: Tensor = _Gated.apply(gate, up, kind)
    return product


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, kind: str) -> Tensor:
        ctx.kind = kind
        ctx.save_for_backward(gate, up)
        if fused(gate):
            from luthier.kernels.triton import gate as kernel

            return kernel.forward(gate, up, kind)
        product: Tensor = _product(gate, up, kind)
        return product

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> tuple[Tensor, Tensor, None]:
        gate, up = ctx.saved_tensors
        if fused(gate):
            from luthier.kernels.triton import gate as kernel

            for_gate, for_up = kernel.backward(upstream[0], gate, up, ctx.kind)
        else:
            for_gate, for_up = _slopes(upstream[0], gate, up, ctx.kind)
        return for_gate, for_up, None


@compilable
def _product(gate: Tensor, up: Tensor, kind: str) -> Tensor:
    return _activate(gate, kind).mul_(up)


@compilable
def _slopes(slope: Tensor, gate: Tensor, up: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """Of the gate and of what it is multiplied with."""
    for_up = _activate(gate, kind).mul_(slope)
    through = slope * up
    if kind == "silu":
        return torch.ops.aten.silu_backward(through, gate), for_up
    return torch.ops.aten.gelu_backward(through, gate, approximate="tanh"), for_up


def _activate(gate: Tensor, kind: str) -> Tensor:
    return F.silu(gate) if kind == "silu" else F.gelu(gate, approximate="tanh")


# Feed-forward modules whose forward is down(act(gate(x)) · up(x)).
_PARTS = ("gate_proj", "up_proj", "down_proj", "act_fn")


def install(model: nn.Module) -> list[nn.Module]:
    """Use it in all feed-forward modules of ``model`` that it equals, and name those."""
    changed: list[nn.Module] = []
    for module in model.modules():
        if not all(hasattr(module, part) for part in _PARTS):
            continue
        kind = _kind(module.act_fn)
        if kind is not None and type(module).__name__.endswith("MLP"):
            module.forward = _forward_of(module, kind)
            changed.append(module)
    return changed


# Transformers' names of the activations, and ours.
KINDS = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}


def _kind(activation: Any) -> str | None:
    """The activation's name, where it is one of those known."""
    for name, kind in KINDS.items():
        known = ACT2CLS[name]
        if type(activation) is (known[0] if isinstance(known, tuple) else known):
            return kind
    return None


def _forward_of(module: Any, kind: str) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        gate, up = module.gate_proj(x), module.up_proj(x)
        output: Tensor = module.down_proj(gated(gate, up, kind))
        return output

    return forward
