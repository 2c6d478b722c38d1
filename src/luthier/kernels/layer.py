"""The sum behind the attention of a layer and the norm after it in one pass, where Triton computes.

    h = x + attention(norm(x)),   y = h + mlp(norm(h))

The second norm reads h anyway: the kernel that makes it makes h too, and its backward adds both
gradients of h up.
"""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from luthier.kernels.norm import plain_eps
from luthier.kernels.triton.switch import fused


def add_rms_norm(x: Tensor, other: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The norm of ``x + other`` (…, H), and that sum, by Triton's kernel; ``weight`` (H,)."""
    normed, total = _AddRMSNorm.apply(x, other, weight, eps)
    return normed, total


class _AddRMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, other: Tensor, weight: Tensor, eps: float) -> Any:
        from luthier.kernels.triton import rms_norm

        ctx.dtypes = x.dtype, other.dtype
        rows, others = (t.reshape(-1, x.shape[-1]).contiguous() for t in (x, other))
        normed, total, scale = rms_norm.forward(rows, weight, eps, others)
        ctx.save_for_backward(total, weight, scale)
        return normed.view(x.shape), total.view(x.shape)

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> tuple[Tensor | None, ...]:
        from luthier.kernels.triton import rms_norm

        total, weight, scale = ctx.saved_tensors
        of_normed, of_total = (t.reshape(total.shape).contiguous() for t in upstream)
        slope, for_weight = rms_norm.backward(
            of_normed, total, weight, scale, weighs=ctx.needs_input_grad[2], more=of_total
        )
        slope = slope.view(upstream[0].shape)
        return slope.to(ctx.dtypes[0]), slope.to(ctx.dtypes[1]), for_weight, None


def install(model: nn.Module) -> list[nn.Module]:
    """Use it in all layers of ``model`` that are written as Llama's are, and name those."""
    written = _body(LlamaDecoderLayer)
    kinds: dict[type, bool] = {}
    changed: list[nn.Module] = []
    layer: Any
    for layer in model.modules():
        kind = type(layer)
        if not kind.__name__.endswith("DecoderLayer"):
            continue
        if kind not in kinds:
            kinds[kind] = _body(kind) == written
        if kinds[kind] and (eps := plain_eps(layer.post_attention_layernorm)) is not None:
            layer.forward = _forward_of(layer, eps)
            changed.append(layer)
    return changed


def _body(kind: type) -> str:
    """What a layer's forward does, as it is written; empty where that is not to be had."""
    try:
        return inspect.getsource(kind.forward).partition("residual = hidden_states")[2]  # type: ignore[attr-defined]
    except (OSError, TypeError):
        return ""


def _forward_of(layer: Any, eps: float) -> Callable[..., Tensor]:
    plain = type(layer).forward

    def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if args or kwargs.get("past_key_values") is not None or not fused(hidden_states):
            result: Tensor = plain(layer, hidden_states, *args, **kwargs)
            return result
        if layer.gradient_checkpointing and layer.training:  # which Transformers does in the class
            return layer._gradient_checkpointing_func(partial(body, **kwargs), hidden_states)
        return body(hidden_states, **kwargs)

    def body(hidden_states: Tensor, **kwargs: Any) -> Tensor:
        attended, _ = layer.self_attn(hidden_states=layer.input_layernorm(hidden_states), **kwargs)
        weight = layer.post_attention_layernorm.weight
        normed, total = add_rms_norm(attended, hidden_states, weight, eps)
        output: Tensor = total + layer.mlp(normed)
        return output

    return forward
