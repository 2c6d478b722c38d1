"""Frozen layers and their adapters in one function, for all layers that share an input.

    y_i = x W_i^T + b_i + s_i dropout(x) A_i^T B_i^T        (Hu et al. 2021)

PEFT runs this as a chain of operations that casts and keeps several copies of the input. Here the
layers fed by one tensor (query, key and value; gate and up) form a group: one dropout and one
product with all A_i stacked, and for the backward only dropout(x) and the small dropout(x) A^T are
kept. The layers of a group share the dropout mask, where PEFT draws one each; each adapter sees the
same distribution.

Modules stay PEFT's: only their ``forward`` is replaced, so what is saved is what PEFT saves.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from luthier.kernels.dropout import drop, drop_, new_seed
from luthier.kernels.nf4 import is_4bit, plain_weight

# Layers of one module that Transformers calls with the same tensor.
SHARED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


class AdaptedGroup:
    """Adapted layers with a common input; computed together when the first of them is called."""

    def __init__(self, layers: Sequence[Any]) -> None:
        self.layers = layers
        self._input: Tensor | None = None
        self._ready: dict[int, Tensor] = {}

    def install(self) -> None:
        for index, layer in enumerate(self.layers):
            layer.forward = self._forward_of(index)

    def _forward_of(self, index: int) -> Callable[..., Tensor]:
        layer = self.layers[index]
        plain = type(layer).forward

        def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            if args or kwargs or not all(is_known(member) for member in self.layers):
                result: Tensor = plain(layer, x, *args, **kwargs)
                return result
            if self._input is not x or index not in self._ready:
                self._input, self._ready = None, {}
                # Recomputation breaks off in here once it has what it wants: then nothing is kept.
                self._ready = dict(enumerate(adapted_linears(x, self.layers)))
                self._input = x
            output = self._ready.pop(index)
            if not self._ready:
                self._input = None
            return output

        return forward


def is_known(layer: nn.Module) -> bool:
    """One active adapter of the plain kind on a linear layer, 4-bit or not: what is computed here."""
    if not isinstance(layer, LoraLayer) or layer.disable_adapters or layer.merged:
        return False
    base = layer.get_base_layer()
    if not is_4bit(base) and not (isinstance(layer, LoraLinear) and type(base) is nn.Linear):
        return False
    if base.bias is not None and base.bias.requires_grad:  # it would get no gradient
        return False
    active = layer.active_adapters
    return (
        len(active) == 1
        and active[0] in layer.lora_A
        and not layer.lora_variant  # DoRA and others; rsLoRA differs in the scale only
        and layer.lora_A[active[0]].bias is None
        and layer.lora_B[active[0]].bias is None
    )


def groups(model: nn.Module) -> Iterator[AdaptedGroup]:
    """All adapted layers of ``model`` that are known, in groups of those that share their input."""
    taken: set[nn.Module] = set()
    modules = list(model.modules())
    for module in modules:
        for names in SHARED:
            members = [getattr(module, name, None) for name in names]
            found = [m for m in members if isinstance(m, nn.Module) and is_known(m)]
            if found:
                taken.update(found)
                yield AdaptedGroup(found)
    for module in modules:
        if module not in taken and is_known(module):
            yield AdaptedGroup([module])


def adapted_linears(x: Tensor, layers: Sequence[Any]) -> tuple[Tensor, ...]:
    """The outputs (…, out_i) of ``layers`` for ``x`` (…, in)."""
    weights = [
        adapter[layer.active_adapters[0]].weight
        for layer in layers
        for adapter in (layer.lora_A, layer.lora_B)
    ]
    kind = x.device.type
    if torch.is_autocast_enabled(kind):
        x = x.to(torch.get_autocast_dtype(kind))
    rate = layers[0].lora_dropout[layers[0].active_adapters[0]]
    rate = rate.p if layers[0].training and isinstance(rate, nn.Dropout) else 0.0
    outputs: tuple[Tensor, ...] = _Adapted.apply(x, layers, rate, *weights)
    return outputs


class _Adapted(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layers: Sequence[Any], rate: float, *ab: Tensor) -> Any:
        flat = x.reshape(-1, x.shape[-1])
        ctx.layers, ctx.rate, ctx.shape = layers, rate, x.shape
        ctx.seed = new_seed(flat) if rate else 0
        scales = [layer.scaling[layer.active_adapters[0]] / (1 - rate) for layer in layers]
        stacked = torch.cat([a.to(x.dtype) for a in ab[::2]])
        kept = drop(flat, rate, ctx.seed) if rate else flat
        inner = kept @ stacked.t()
        outputs = []
        start = 0
        for layer, b, scale in zip(layers, ab[1::2], scales, strict=True):
            base = layer.get_base_layer()
            bias = None if base.bias is None else base.bias.to(x.dtype)
            output = F.linear(flat, plain_weight(base, x.dtype), bias)
            rank = b.shape[1]
            output.addmm_(inner[:, start : start + rank], b.to(x.dtype).t(), alpha=scale)
            outputs.append(output.view(*x.shape[:-1], -1))
            start += rank
        ctx.scales = scales
        ctx.save_for_backward(kept, inner, *ab)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        kept, inner, *ab = ctx.saved_tensors
        dtype, rate = kept.dtype, ctx.rate
        slopes = [g.reshape(-1, g.shape[-1]).to(dtype) for g in upstream]
        for_inner = torch.empty_like(inner)
        for_b = []
        start = 0
        for slope, b, scale in zip(slopes, ab[1::2], ctx.scales, strict=True):
            part = slice(start, start + b.shape[1])
            scaled = (b * scale).to(dtype)
            for_inner[:, part] = slope @ scaled
            for_b.append((inner[:, part].t() @ slope).t().to(b.dtype).mul_(scale))
            start += b.shape[1]
        for_a = (for_inner.t() @ kept).to(ab[0].dtype).split([a.shape[0] for a in ab[::2]])
        for_x = None
        if ctx.needs_input_grad[0]:
            stacked = torch.cat([a.to(dtype) for a in ab[::2]])
            for_x = for_inner @ stacked
            if rate:
                drop_(for_x, rate, ctx.seed)
            for slope, layer in zip(slopes, ctx.layers, strict=True):
                for_x.addmm_(slope, plain_weight(layer.get_base_layer(), dtype))
            for_x = for_x.view(ctx.shape)
        of_adapters = [g for pair in zip(for_a, for_b, strict=True) for g in pair]
        return (for_x, None, None, *of_adapters)
