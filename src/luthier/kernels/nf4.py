"""The weight of a frozen layer as a plain matrix, for as long as one product takes."""

import sys
from typing import Any, TypeGuard

import torch
from torch import Tensor
from transformers import BitsAndBytesConfig

from luthier.kernels import fp8


def is_4bit(layer: Any) -> TypeGuard[Any]:
    """Whether ``layer`` is a linear layer that bitsandbytes keeps in 4 bits."""
    library = sys.modules.get("bitsandbytes.nn")  # no layer is its own before its import
    return library is not None and isinstance(layer, library.Linear4bit)


def plain_weight(layer: Any, dtype: torch.dtype) -> Tensor:
    """The weight of ``layer`` in ``dtype``, expanded each time where it is kept in 4 or 8 bits."""
    if fp8.is_fp8(layer):
        return fp8.expanded(layer, dtype)
    if not is_4bit(layer):
        plain: Tensor = layer.weight.to(dtype)
        return plain
    from bitsandbytes.functional import dequantize_4bit

    # Put together from the parts of several processes a weight has lost its state, the layer has not.
    state = getattr(layer.weight, "quant_state", None) or layer.quant_state
    expanded: Tensor = dequantize_4bit(layer.weight.data, state)
    return expanded.to(dtype)


def through_4bit(weight: Tensor, config: BitsAndBytesConfig, blocksize: int) -> Tensor:
    """What a layer that keeps ``weight`` (out, in) in 4 bits computes with, in its dtype.

    Bit for bit what loading it with ``config`` gives, on the device of ``weight``.
    """
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    packed, state = quantize_4bit(
        weight.contiguous(),
        blocksize=blocksize,
        compress_statistics=config.bnb_4bit_use_double_quant,
        quant_type=config.bnb_4bit_quant_type,
    )
    expanded: Tensor = dequantize_4bit(packed, state)
    return expanded
