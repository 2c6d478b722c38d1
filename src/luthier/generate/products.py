"""The matrix products of a layer as few as can be: weights with a common input lie in one piece."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

Active = Sequence[tuple[str, slice]]  # names of adapters, each with a run of rows that it is on for

_onednn = torch.ops.mkldnn


class Unknown(Exception):
    """A part of the model is not of the kind that is computed here."""


@dataclass(frozen=True)
class Low:
    """An adapter on layers with a common input.

    Attributes:
        down: (R, in), all A below one another.
        ups: of each layer that has it, s B^T (r, out), its columns of the layers' outputs, and of x A^T.
    """

    down: Tensor
    ups: Sequence[tuple[Tensor, slice, slice]]


@dataclass
class Product:
    """y = x W^T + b, and + x A^T (s B)^T in some rows (Hu et al. 2021), of several layers at once.

    Attributes:
        weight: (out, in), the layers' weights below one another.
        packed: a copy of the weight in the order in which oneDNN reads it, where there is one.
    """

    weight: Tensor
    bias: Tensor | None
    adapters: dict[str, Low] = field(default_factory=dict)
    packed: Tensor | None = None

    def __call__(self, x: Tensor, active: Active) -> Tensor:
        """(N, out) of ``x`` (N, in)."""
        if self.packed is None:
            output = F.linear(x, self.weight, self.bias)
        else:
            output = _onednn._linear_pointwise(x, self.packed, self.bias, "none", [], "")
        for name, rows in active:
            low = self.adapters.get(name)
            if low is None:
                continue
            inner = F.linear(x[rows].to(low.down.dtype), low.down)
            target = output[rows]
            exact = target.to(low.down.dtype)  # adapters stay in float32
            for up, columns, ranks in low.ups:
                exact[:, columns].addmm_(inner[:, ranks], up)
            if exact is not target:
                target.copy_(exact)
        return output


def can_pack(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether products of packed weights are the faster ones: measured on x86 CPUs with AVX-512."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.bfloat16:
        return bool(torch.cpu._is_avx512_bf16_supported())
    return dtype == torch.float32 and torch.backends.cpu.get_cpu_capability().startswith("AVX")


def packed(weight: Tensor, rows: int) -> Tensor:
    """A copy of ``weight`` (out, in) for products with some ``rows`` rows; it works with any number."""
    copy: Tensor = _onednn._reorder_linear_weight(weight.detach(), rows)
    return copy


def product(*layers: nn.Module) -> Product:
    """The product of ``layers``, which share their input; their weights become parts of one.

    The layers go on to work as they did: each one's weight is a slice of the whole.

    Raises:
        Unknown: a layer is not a plain one, with adapters of the plain kind or without.
    """
    plain = [_base(layer) for layer in layers]
    weight = _joined([base.weight for base in plain])
    bias = None
    if any(base.bias is not None for base in plain):
        zeros = [base.weight.new_zeros(base.out_features) for base in plain]
        bias = torch.cat(
            [
                zero if base.bias is None else base.bias
                for base, zero in zip(plain, zeros, strict=True)
            ]
        )
    names = {name for layer in layers if isinstance(layer, LoraLayer) for name in layer.lora_A}
    return Product(weight, bias, {name: _low(name, layers, plain) for name in sorted(names)})


def _base(layer: Any) -> nn.Linear:
    base = layer.get_base_layer() if type(layer) is LoraLinear else layer
    if type(base) is not nn.Linear or hooked(layer) or hooked(base):
        raise Unknown(f"{type(layer).__name__} is not a plain linear layer")
    if base is not layer and (layer.merged or layer.lora_variant):
        raise Unknown("an adapter of another kind than plain LoRA")
    return base


def hooked(module: nn.Module) -> bool:
    """Whether something else than its own ``forward`` runs when ``module`` is called."""
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


def _joined(weights: Sequence[Tensor]) -> Tensor:
    """The weights below one another, without a second copy of them in memory."""
    if len(weights) == 1:
        return weights[0]
    first = weights[0]
    rows = [weight.shape[0] for weight in weights]
    if not _adjacent(weights):
        whole = torch.cat([weight.data for weight in weights])
        for weight, part in zip(weights, whole.split(rows), strict=True):
            weight.data = part
    return first.data.as_strided((sum(rows), first.shape[1]), (first.shape[1], 1))


def _adjacent(weights: Sequence[Tensor]) -> bool:
    storage = weights[0].untyped_storage().data_ptr()
    place = weights[0].storage_offset()
    for weight in weights:
        same = weight.untyped_storage().data_ptr() == storage and weight.is_contiguous()
        if not same or weight.storage_offset() != place:
            return False
        place += weight.numel()
    return True


def _low(name: str, layers: Sequence[Any], plain: Sequence[nn.Linear]) -> Low:
    """The adapter ``name`` of all ``layers`` that have it."""
    having = [isinstance(layer, LoraLayer) and name in layer.lora_A for layer in layers]
    downs = [layer.lora_A[name] for layer, has in zip(layers, having, strict=True) if has]
    if any(type(down) is not nn.Linear or down.bias is not None for down in downs):
        raise Unknown("an adapter of another kind than plain LoRA")
    ups = []
    row = column = 0
    for layer, base, has in zip(layers, plain, having, strict=True):
        if has:
            part = layer.lora_B[name]
            if part.bias is not None:
                raise Unknown("an adapter of another kind than plain LoRA")
            rank = part.weight.shape[1]
            columns = slice(row, row + base.out_features)
            up = part.weight.data * layer.scaling[name]
            ups.append((up.t(), columns, slice(column, column + rank)))
            column += rank
        row += base.out_features
    return Low(torch.cat([each.weight.data for each in downs]), ups)
