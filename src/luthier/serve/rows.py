"""Keys and values of each answer apart, and the attention over them.

Rows of a batch are of unequal length. Padding them to one another would cost time and change the
rounding of each with its neighbours; here every row attends to its own keys, by Transformers' own
SDPA, exactly as it would alone.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

NAME = "luthier-rows"


@dataclass
class _Layer:
    """Keys and values (1, heads, room, d) of one layer, of which ``length`` are there."""

    keys: Tensor
    values: Tensor
    length: int
    window: int | None


class Row:
    """What the model remembers of one answer: filled by its prompt, longer by each token."""

    def __init__(self, cache: DynamicCache, room: int) -> None:
        """Take over what ``cache`` holds of the prompt, with space for ``room`` tokens more.

        Raises:
            TypeError: a layer keeps something else than keys and values.
        """
        self.tokens = cache.get_seq_length()
        self._layers = [_take(layer, room) for layer in cache.layers]

    def extend(self, layer_index: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Add the next token's (1, heads, 1, d); returns all that it sees."""
        layer = self._layers[layer_index]
        layer.keys[:, :, layer.length] = key[:, :, 0]
        layer.values[:, :, layer.length] = value[:, :, 0]
        layer.length += 1
        first = max(0, layer.length - layer.window) if layer.window else 0
        seen = slice(first, layer.length)
        return layer.keys[:, :, seen], layer.values[:, :, seen]


def _take(layer: Any, room: int) -> _Layer:
    if not isinstance(layer, DynamicLayer) or layer.keys is None or layer.values is None:
        raise TypeError(f"{type(layer).__name__} keeps no keys and values")
    length = layer.keys.shape[2]
    kept = []
    for old in (layer.keys, layer.values):
        # Memory that is not yet written is not yet taken, on a CPU.
        new = old.new_empty(1, old.shape[1], length + room, old.shape[3])
        new[:, :, :length] = old
        kept.append(new)
    window = layer.sliding_window if getattr(layer, "is_sliding", False) else None  # type: ignore[attr-defined]
    return _Layer(kept[0], kept[1], length, window)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    rows: list[Row] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """An attention function of Transformers: (B, heads, 1, d) in, (B, 1, heads, d) out.

    Without ``rows``, as while a prompt is read, it is SDPA and no more.
    """
    if rows is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    outputs = []
    for i, row in enumerate(rows):
        one = slice(i, i + 1)
        index: Any = module.layer_idx
        keys, values = row.extend(index, key[one], value[one])
        outputs.append(sdpa_attention_forward(module, query[one], keys, values, None, **kwargs)[0])
    return torch.cat(outputs), None


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)  # for all calls without rows
