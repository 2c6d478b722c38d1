"""Adapters on the experts of a layer, as products of their own: W + ΔW is never made.

    y_t = sum over the experts e of token t of g_te W_e x_t + g_te s B_e A_e x_t

PEFT makes W + ΔW of all experts in each forward, 2.8 GB a layer in bfloat16 for Mixtral 8x7B, and the
gradient of all of it in the backward. Here tokens are sorted by expert, and every product is one
grouped product over all experts, those of A and B among them; a frozen W gets no gradient. A and B are
cast for the products once for each update (``casts.py``).

Modules stay PEFT's and Transformers': only the ``forward`` of the adapter is replaced.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from peft.tuners.lora import LoraLayer, ParamWrapper
from torch import Tensor, nn
from torch.nn.functional import grouped_mm

from luthier.kernels import casts
from luthier.kernels.casts import Casts

# Parameters of an experts module, (experts, out, in).
_STACKS = ("gate_up_proj", "down_proj")
_RANKS = 8  # ranks are filled up with noughts to a multiple of so many, for rows of 16 bytes
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def install(model: nn.Module) -> list[LoraLayer]:
    """Use it in all experts of ``model`` whose adapters are known, and name those adapters."""
    found: list[LoraLayer] = []
    for outer in _outermost(model):
        wrappers = _wrappers(outer)
        if _is_known(wrappers):
            for wrapper in wrappers:
                setattr(wrapper, casts.NAME, Casts(partial(_by_expert, wrapper.num_experts)))
            outer.forward = _forward_of(outer, wrappers)
            found += wrappers
    return found


def _outermost(model: nn.Module) -> Iterator[Any]:
    """Adapters of parameters that are in no other; two of one module are in each other."""
    inner = {id(m.base_layer) for m in model.modules() if isinstance(m, ParamWrapper)}
    yield from (m for m in model.modules() if isinstance(m, ParamWrapper) and id(m) not in inner)


def _wrappers(outer: Any) -> list[Any]:
    found = [outer]
    while isinstance(found[-1].base_layer, ParamWrapper):
        found.append(found[-1].base_layer)
    return found


def _is_known(wrappers: list[Any]) -> bool:
    """One active adapter on stacks of frozen matrices, (experts, out, in), that are gated and have no bias."""
    experts = wrappers[0].get_base_layer()
    plain = (
        getattr(experts, "has_gate", False)
        and not experts.has_bias
        and not experts.is_transposed
        and not experts.has_post_expert_norm
        and not experts._is_expert_parallel
        and all(_is_aligned(getattr(experts, name, None)) for name in _STACKS)
    )
    return plain and all(
        wrapper.parameter_name in _STACKS
        and not wrapper.disable_adapters
        and not wrapper.merged
        and len(wrapper.active_adapters) == 1
        and wrapper.active_adapters[0] in wrapper.lora_A
        and wrapper.num_experts > 1
        and wrapper.get_param().dtype in _DTYPES
        and not wrapper.get_param().requires_grad
        for wrapper in wrappers
    )


def _is_aligned(stack: Any) -> bool:
    """Whether grouped products can be made of the parameter: they need rows of 16 bytes, or several."""
    if not isinstance(stack, nn.Parameter) or stack.ndim != 3:
        return False
    return all(size * stack.element_size() % 16 == 0 for size in stack.shape[1:])


def _forward_of(outer: Any, wrappers: list[Any]) -> Callable[..., Tensor]:
    plain = type(outer).forward
    by_name = {wrapper.parameter_name: wrapper for wrapper in wrappers}

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if len(args) != 2 or kwargs or not _is_known(wrappers):
            result: Tensor = plain(outer, x, *args, **kwargs)
            return result
        return _experts(outer.get_base_layer(), by_name, x, *args)

    return forward


def _experts(
    experts: Any, adapters: dict[str, Any], x: Tensor, chosen: Tensor, weights: Tensor
) -> Tensor:
    """What the experts make of ``x`` (T, H): the sum of those ``chosen`` (T, k), by ``weights`` (T, k)."""
    each = chosen.shape[-1]
    by_expert, order = torch.sort(chosen.reshape(-1), stable=True)
    counts = (by_expert[None] == torch.arange(experts.num_experts, device=x.device)[:, None]).sum(1)
    ends = counts.cumsum(0, dtype=torch.int32)
    inputs = x[order // each].to(experts.down_proj.dtype)
    inner = experts._apply_gate(_adapted(inputs, experts, adapters, "gate_up_proj", ends))
    outputs = _adapted(inner, experts, adapters, "down_proj", ends)
    outputs = outputs * weights.reshape(-1)[order][:, None]
    # Back in the order of tokens, and summed there: adding by index has no fixed order on a GPU.
    back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=x.device))
    return outputs[back].view(len(x), each, -1).sum(1).to(x.dtype)


def _adapted(x: Tensor, experts: Any, adapters: dict[str, Any], name: str, ends: Tensor) -> Tensor:
    """The products (S, out) of ``x`` (S, in), sorted by expert, with a stack and its adapter's."""
    weight = getattr(experts, name)
    if name not in adapters:
        frozen: Tensor = _Frozen.apply(x, weight, ends)
        return frozen
    wrapper = adapters[name]
    adapter = wrapper.active_adapters[0]
    a, b = wrapper.lora_A[adapter].weight, wrapper.lora_B[adapter].weight
    kept, scale = getattr(wrapper, casts.NAME), wrapper.scaling[adapter]
    adapted: Tensor = _Adapted.apply(x, weight, ends, kept, scale, a, b)
    return adapted


class _Frozen(torch.autograd.Function):
    """x W_e^T for each token's expert, and no gradient of W."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
        ctx.save_for_backward(weight, ends)
        return grouped_mm(x, weight.mT, offs=ends)

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> tuple[Tensor | None, None, None]:
        weight, ends = ctx.saved_tensors
        return grouped_mm(upstream[0].contiguous(), weight, offs=ends), None, None


class _Adapted(torch.autograd.Function):
    """x W_e^T + s x A_e^T B_e^T for each token's expert, and no gradient of W."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        ends: Tensor,
        kept: Casts,
        scale: float,
        a: Tensor,
        b: Tensor,
    ) -> Tensor:
        down, (up,) = kept.of((a, b), x.dtype)
        inner = grouped_mm(x, down.mT, offs=ends)
        ctx.kept, ctx.scale = kept, scale
        ctx.save_for_backward(x, inner, weight, ends, a, b)
        output = grouped_mm(x, weight.mT, offs=ends)
        return output.add_(grouped_mm(inner, up.mT, offs=ends), alpha=scale)

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> Any:
        x, inner, weight, ends, a, b = ctx.saved_tensors
        slope = upstream[0].contiguous()
        down, (up,) = ctx.kept.of((a, b), x.dtype)
        # The scale goes to what is narrow, (S, r), and to the gradient of B; the slope is (S, out).
        for_inner = grouped_mm(slope, up, offs=ends).mul_(ctx.scale)
        for_x = None
        if ctx.needs_input_grad[0]:
            for_x = grouped_mm(slope, weight, offs=ends)
            for_x.add_(grouped_mm(for_inner, down, offs=ends))
        rank = b.shape[1] // len(weight)
        for_a = grouped_mm(for_inner.mT, x, offs=ends)[:, :rank].to(a.dtype)
        for_b = grouped_mm(slope.mT, inner, offs=ends)[..., :rank].permute(1, 2, 0)
        for_b = for_b.to(b.dtype, memory_format=torch.contiguous_format).mul_(ctx.scale)
        return for_x, None, None, None, None, for_a.reshape(a.shape), for_b.reshape(b.shape)


def _by_expert(
    experts: int, ab: Sequence[Tensor], dtype: torch.dtype
) -> tuple[Tensor, list[Tensor]]:
    """A (experts, r, in) and B (experts, out, r) in ``dtype``, with r filled up to a multiple of ``_RANKS``.

    PEFT has A as (experts · r, in), and B as (out, r · experts), whose experts are neighbours in memory.
    """
    a, b = ab
    down = a.view(experts, -1, a.shape[1])
    up = b.view(b.shape[0], -1, experts).permute(2, 0, 1)
    rank = down.shape[1]
    filled = rank + -rank % _RANKS
    sizes = [experts * filled * a.shape[1], experts * filled * b.shape[0]]
    make = a.new_empty if filled == rank else a.new_zeros
    of_a, of_b = make(sum(sizes), dtype=dtype).split(sizes)
    of_a, of_b = of_a.view(experts, filled, -1), of_b.view(experts, -1, filled)
    with torch.no_grad():
        torch._foreach_copy_([of_a[:, :rank], of_b[..., :rank]], [down, up])
    return of_a, [of_b]
