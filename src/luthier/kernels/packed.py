"""Attention of packed rows on a GPU: one kernel for all rows of a layer, whatever their lengths.

Where FlashAttention computes a layer it is ``torch.nn.attention.varlen.varlen_attn``: half precision,
heads of up to 256 numbers. Capped scores (Gemma 2) and float32 run by flex_attention, which skips the
blocks of 128 × 128 scores that no row of the batch has. Neither has a tensor of all pairs of tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses import FakeTensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.nn.attention.varlen import varlen_attn

from luthier.models.copies import to_device

_BLOCK = 128  # tokens, the edge of flex_attention's blocks
_MOST_WIDTH = 256  # numbers of a head, at most, in FlashAttention


@dataclass(frozen=True)
class PackedRows:
    """Where the rows of a batch lie, for the device; made once a batch and used by all layers.

    Attributes:
        lengths: of the rows, T in all.
        borders: (rows + 1,) int32, the sums of the lengths before each row, and T.
        device: of ``borders``.
        masks: flex_attention's blocks by window, made when a layer first asks.
    """

    lengths: tuple[int, ...]
    borders: Tensor
    device: torch.device
    masks: dict[int, BlockMask] = field(default_factory=dict)

    @classmethod
    def of(cls, lengths: tuple[int, ...], device: torch.device) -> "PackedRows":
        borders = np.cumsum([0, *lengths], dtype=np.int32)
        return cls(lengths, to_device(torch.from_numpy(borders), device), device)

    def mask(self, window: int) -> BlockMask:
        """Flex_attention's: causal within each row, of at most ``window`` tokens."""
        if window not in self.masks:
            self.masks[window] = _block_mask(self.lengths, window, self.device)
        return self.masks[window]


def attend_packed(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rows: PackedRows,
    scale: float,
    window: int | None,
    softcap: float | None = None,
) -> Tensor:
    """Causal attention within each row: (1, heads, T, d) in, (1, T, heads, d) out.

    Args:
        window: a token sees itself and the ``window`` - 1 before it; None for all before it.
        softcap: scores become softcap · tanh(scores / softcap) (Gemma 2, section 2).
    """
    longest = max(rows.lengths)
    if window is not None and window >= longest:
        window = None
    grouped = query.shape[1] != key.shape[1]
    # A simulated step has both keep the same: inputs, output, and a number for each query.
    simulated = isinstance(query, FakeTensor) or query.is_meta
    if simulated or (softcap is None and _is_for_flash(query, value)):
        # Flattened, not indexed: the gradient of an index is a tensor of noughts that it is copied into.
        of_query, of_key, of_value = (t.transpose(1, 2).flatten(0, 1) for t in (query, key, value))
        attended: Any = varlen_attn(
            of_query,
            of_key,
            of_value,
            rows.borders,
            rows.borders,
            longest,
            longest,
            scale=scale,
            window_size=(-1 if window is None else window - 1, 0),
            enable_gqa=grouped,
        )
        return attended[None]
    found: Tensor = _flex()(
        query,
        key,
        value,
        score_mod=None if softcap is None else _capped(softcap),
        block_mask=rows.mask(window or longest),
        scale=scale,
        enable_gqa=grouped,
    )
    return found.transpose(1, 2)


def _is_for_flash(query: Tensor, value: Tensor) -> bool:
    width = query.shape[-1]
    fits = width == value.shape[-1] and width <= _MOST_WIDTH and width % 8 == 0
    return fits and query.dtype in (torch.bfloat16, torch.float16)


@lru_cache(maxsize=1)
def _flex() -> Callable[..., Any]:
    """Compiled: uncompiled it has all scores at once."""
    return torch.compile(flex_attention)


@lru_cache(maxsize=4)
def _capped(softcap: float) -> Callable[..., Tensor]:
    def capped(score: Tensor, _batch: Tensor, _head: Tensor, _q: Tensor, _kv: Tensor) -> Tensor:
        return softcap * torch.tanh(score / softcap)

    return capped


def _block_mask(lengths: tuple[int, ...], window: int, device: torch.device) -> BlockMask:
    """Of the blocks that hold scores those full of them, and those where ``mask`` must look."""
    total = sum(lengths)
    row_of = np.repeat(np.arange(len(lengths)), lengths)
    begins = np.repeat(np.cumsum([0, *lengths[:-1]]), lengths)  # of each token's row
    first = np.arange(0, total, _BLOCK)
    last = np.minimum(first + _BLOCK, total) - 1
    q_first, q_last = first[:, None], last[:, None]
    earliest = np.maximum(begins[first], first - window + 1)[:, None]
    some = (last >= earliest) & (first <= q_last)
    whole = (last <= q_first) & (row_of[first] == row_of[q_last]) & (q_last - first < window)
    complete = last - first == _BLOCK - 1
    whole &= complete & complete[:, None]
    rows = to_device(torch.from_numpy(row_of.astype(np.int32)), device)

    def mask(_batch: Tensor, _head: Tensor, q: Tensor, kv: Tensor) -> Tensor:
        return (rows[q] == rows[kv]) & (q >= kv) & (q - kv < window)

    found: BlockMask = BlockMask.from_kv_blocks(
        *_listed(some & ~whole, device),
        *_listed(whole, device),
        BLOCK_SIZE=_BLOCK,
        mask_mod=mask,
        seq_lengths=(total, total),
    )
    return found


def _listed(blocks: Any, device: torch.device) -> tuple[Tensor, Tensor]:
    """How many blocks each row of ``blocks`` has, and which come first: (1, 1, n) and (1, 1, n, n)."""
    order = np.argsort(~blocks, axis=1, kind="stable")
    counts, indices = (
        to_device(torch.from_numpy(numbers.astype(np.int32)), device)[None, None]
        for numbers in (blocks.sum(1), order)
    )
    return counts, indices
