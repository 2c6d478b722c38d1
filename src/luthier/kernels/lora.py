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
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.pytorch_utils import Conv1D

from luthier.kernels import casts, fp8
from luthier.kernels.autocast import autocast_dtype
from luthier.kernels.casts import Casts
from luthier.kernels.dropout import drop, drop_, new_seed
from luthier.kernels.nf4 import is_4bit, plain_weight

# Layers of one module that Transformers calls with the same tensor.
SHARED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


class AdaptedGroup:
    """Adapted layers with a common input; computed together when the first of them is called.

    Args:
        block: the layer of the model that they are in, where it is one that can be recomputed.
    """

    def __init__(self, layers: Sequence[Any], block: GradientCheckpointingLayer | None) -> None:
        self.layers = layers
        self.block = block
        self._keeps = False
        self._casts = Casts()
        self._input: Tensor | None = None
        self._ready: dict[int, Tensor] = {}

    def install(self, keeps: bool) -> None:
        """Compute them so; ``keeps`` keeps 4-bit weights expanded from a recomputation to its backward."""
        self._keeps = keeps
        setattr(self.layers[0], casts.NAME, self._casts)
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
                outputs = adapted_linears(x, self.layers, self._casts, self._is_recomputed())
                self._ready = dict(enumerate(outputs))
                self._input = x
            output = self._ready.pop(index)
            if not self._ready:
                self._input = None
            return output

        return forward

    def _is_recomputed(self) -> bool:
        """Whether what is kept for the backward is first dropped, and kept once the block is recomputed."""
        block = self.block
        return self._keeps and block is not None and block.gradient_checkpointing and block.training


def is_known(layer: nn.Module) -> bool:
    """One active adapter of the plain kind on a linear layer, in 4, 8 or more bits: what is computed here."""
    if not isinstance(layer, LoraLayer) or layer.disable_adapters or layer.merged:
        return False
    base = layer.get_base_layer()
    if not is_4bit(base) and not (
        isinstance(layer, LoraLinear) and type(base) in (nn.Linear, Conv1D, fp8.FP8Linear)
    ):
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
    blocks = [module for module in modules if isinstance(module, GradientCheckpointingLayer)]
    block_of = {module: block for block in blocks for module in block.modules()}
    for module in modules:
        for names in SHARED:
            members = [getattr(module, name, None) for name in names]
            found = [m for m in members if isinstance(m, nn.Module) and is_known(m)]
            if found:
                taken.update(found)
                yield AdaptedGroup(found, block_of.get(found[0]))
    for module in modules:
        if module not in taken and is_known(module):
            yield AdaptedGroup([module], block_of.get(module))


def adapted_linears(
    x: Tensor, layers: Sequence[Any], kept: Casts, keeps_expanded: bool = False
) -> tuple[Tensor, ...]:
    """The outputs (…, out_i) of ``layers`` for ``x`` (…, in); ``kept`` is of these layers alone.

    With ``keeps_expanded`` the backward finds 4-bit weights expanded, as tensors that autograd saves.
    """
    weights = [
        adapter[layer.active_adapters[0]].weight
        for layer in layers
        for adapter in (layer.lora_A, layer.lora_B)
    ]
    x = x.to(autocast_dtype(x.device) or x.dtype)
    rate = layers[0].lora_dropout[layers[0].active_adapters[0]]
    rate = rate.p if layers[0].training and isinstance(rate, nn.Dropout) else 0.0
    outputs: tuple[Tensor, ...] = _Adapted.apply(x, layers, rate, kept, keeps_expanded, *weights)
    return outputs


class _Adapted(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        layers: Sequence[Any],
        rate: float,
        casts: Casts,
        keeps_expanded: bool,
        *ab: Tensor,
    ) -> Any:
        flat = x.reshape(-1, x.shape[-1])
        ctx.layers, ctx.rate, ctx.casts, ctx.shape = layers, rate, casts, x.shape
        ctx.seed = new_seed(flat) if rate else 0
        ctx.scales = [layer.scaling[layer.active_adapters[0]] / (1 - rate) for layer in layers]
        stacked, ups = casts.of(ab, x.dtype)
        kept = drop(flat, rate, ctx.seed) if rate else flat
        inner = kept @ stacked.t()
        outputs, expanded = [], []
        bases = [layer.get_base_layer() for layer in layers]
        rows = fp8.in_rows(flat) if any(map(fp8.multiplies, bases)) else None
        for base, up, part, scale in zip(bases, ups, _parts(inner, ups), ctx.scales, strict=True):
            if rows is not None and fp8.multiplies(base):
                output = fp8.product(rows, base, x.dtype)
            else:
                bias = None if base.bias is None else base.bias.to(x.dtype)
                matrix = _matrix(base, x.dtype)
                output = F.linear(flat, matrix, bias)
                if keeps_expanded and ctx.needs_input_grad[0] and is_4bit(base):
                    expanded.append(matrix)
                del matrix
            output.addmm_(part, up.t(), alpha=scale)
            outputs.append(output.view(*x.shape[:-1], -1))
        ctx.adapters = len(ab)
        ctx.save_for_backward(kept, inner, *ab, *expanded)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        kept, inner, *saved = ctx.saved_tensors
        ab, expanded = saved[: ctx.adapters], saved[ctx.adapters :]
        del saved
        dtype, rate = kept.dtype, ctx.rate
        stacked, ups = ctx.casts.of(ab, dtype)
        slopes = [g.reshape(-1, g.shape[-1]).to(dtype) for g in upstream]
        for_inner = torch.empty_like(inner)
        # The gradients of all A and B lie in one piece of memory, to be cast at once.
        sizes = [weight.numel() for weight in (stacked, *ups)]
        memory = kept.new_empty(sum(sizes))
        for_a, *for_b = memory.split(sizes)
        each = zip(
            slopes, ups, ctx.scales, for_b, _parts(inner, ups), _parts(for_inner, ups), strict=True
        )
        for slope, up, scale, of_up, part, of_part in each:
            _product(slope, up, scale, of_part)
            if slope.device.type == "cpu":  # whose product is half as fast that way round
                of_up.view(up.shape).copy_((part.t() @ slope).t().mul_(scale))
            else:
                _product(slope.t(), part, scale, of_up.view(up.shape))
        torch.mm(for_inner.t(), kept, out=for_a.view(stacked.shape))
        for_x = None
        if ctx.needs_input_grad[0]:
            for_x = for_inner @ stacked
            if rate:
                drop_(for_x, rate, ctx.seed)
            for slope, layer in zip(slopes, ctx.layers, strict=True):
                base = layer.get_base_layer()
                if fp8.multiplies(base):
                    for_x.add_(fp8.product_back(slope, base))
                    continue
                kept_matrix = expanded and is_4bit(base)
                for_x.addmm_(slope, expanded.pop(0) if kept_matrix else _matrix(base, dtype))
            for_x = for_x.view(ctx.shape)
        in_order = [*ab[::2], *ab[1::2]]
        parts = memory.to(ab[0].dtype).split([weight.numel() for weight in in_order])
        found = [part.view(weight.shape) for part, weight in zip(parts, in_order, strict=True)]
        of_adapters = [g for pair in zip(found, found[len(ups) :]) for g in pair]  # noqa: B905
        return (for_x, None, None, None, None, *of_adapters)


def _matrix(base: Any, dtype: torch.dtype) -> Tensor:
    """The weight (out, in) of ``base``; GPT-2's layers keep it the other way round."""
    weight = plain_weight(base, dtype)
    return weight.t() if isinstance(base, Conv1D) else weight


def _parts(inner: Tensor, ups: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The columns of ``inner`` (T, sum of r_i) that belong to each B."""
    return inner.split([up.shape[1] for up in ups], dim=1)


def _product(left: Tensor, right: Tensor, scale: float, out: Tensor) -> None:
    """``scale`` · ``left`` ``right`` into ``out``, in one launch."""
    torch.addmm(out, left, right, beta=0, alpha=scale, out=out)
