"""Attention of packed rows, row by row: its cost is the sum of their squares.

Transformers hides packed rows from each other by a mask over all pairs of tokens, and computes all
of them. Here each row attends within itself, causally (with the layer's window, where it has one). On
a GPU one kernel does so for all rows (``packed.py``); on other devices they run one after the other.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses import FakeTensor
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, eager_mask, sdpa_mask

from luthier.kernels.autocast import autocast_dtype
from luthier.kernels.packed import PackedRows, attend_packed
from luthier.kernels.triton.switch import is_gpu

NAME, CAPPED = "luthier", "luthier-capped"
_REPLACED = {NAME: "sdpa", CAPPED: "eager"}

# Architectures whose layers see the past of their row, all or a window of it, and nothing else.
KNOWN = frozenset(
    (
        *("apertus", "arcee", "cohere", "cohere2", "cwm", "ernie4_5", "ernie4_5_moe", "exaone4"),
        *("flex_olmo", "gemma3_text", "glm", "glm4", "glm4_moe", "gpt2", "gpt_bigcode", "gpt_neox"),
        *("granite", "granitemoe", "helium", "hunyuan_v1_dense", "internlm3", "jais2", "llama"),
        *(
            "minimax_m2",
            "ministral",
            "ministral3",
            "mistral",
            "mixtral",
            "nanochat",
            "olmo",
            "olmo2",
        ),
        *("olmo3", "olmoe", "opt", "persimmon", "phi", "phi3", "qwen2", "qwen2_moe", "qwen3"),
        *("qwen3_moe", "seed_oss", "smollm3", "solar_open", "starcoder2"),
    )
)
KNOWN_CAPPED = frozenset(("gemma2",))  # the same with capped scores: on a GPU alone


def attend_by_rows(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    row_lengths: tuple[int, ...] | None = None,
    packed_rows: PackedRows | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """An attention function of Transformers: (1, heads, T, d) in, (1, T, heads, d) out.

    Without ``row_lengths``, as in generation, Transformers' own SDPA does the work. With
    ``packed_rows`` (see ``row_inputs``) one kernel does, but for dropout, which it does not have.
    """
    if row_lengths is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    window = sliding_window or max(row_lengths)
    query, key, value = _as_computed(query, key, value)
    if packed_rows is not None and not dropout:
        return attend_packed(query, key, value, packed_rows, scale, sliding_window), None
    if query.device.type == "cpu" and query.dtype != torch.float32 and not dropout:
        output: Tensor = _RowAttention.apply(query, key, value, row_lengths, scale, window)
        return output, None
    grouped = query.shape[1] != key.shape[1]
    outputs = []
    for q, k, v in zip(*(t.split(row_lengths, dim=2) for t in (query, key, value)), strict=True):
        how: dict[str, Any] = {"dropout_p": dropout, "scale": scaling, "enable_gqa": grouped}
        if q.shape[2] > window:
            attended = _windowed(q, k, v, window, how)
        else:
            attended = F.scaled_dot_product_attention(q, k, v, is_causal=True, **how)
        outputs.append(attended.transpose(1, 2))
    return torch.cat(outputs, dim=1), None


def _as_computed(*tensors: Tensor) -> tuple[Tensor, ...]:
    """In autocast's dtype, where autocast is on."""
    dtype = autocast_dtype(tensors[0].device)
    return tensors if dtype is None else tuple(t.to(dtype) for t in tensors)


class _RowAttention(torch.autograd.Function):
    """softmax(scale · Q K^T + mask) V for each row, in products of batches of heads.

    PyTorch's fused CPU attention is slow in bfloat16, two to three times slower than these products
    at the lengths of examples; in float32 it is the faster one, and is used. Scores are there for ``_BLOCK`` queries of one row at a time, and are
    computed again in the backward, so that memory stays linear in tokens.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        row_lengths: tuple[int, ...],
        scale: float,
        window: int,
    ) -> Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.settings = row_lengths, scale, window
        _, heads, total, _ = query.shape
        output = query.new_empty(1, total, heads, value.shape[-1])
        shared = heads // key.shape[1]
        for block in _blocks(row_lengths, window):
            chances = _chances(query, key, block, scale, window)
            part = torch.bmm(chances, value[0, :, block.left : block.right])
            output[0, block.start : block.end] = _ungroup(part, shared).transpose(0, 1)
        return output

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> Any:
        query, key, value = ctx.saved_tensors
        row_lengths, scale, window = ctx.settings
        slope = upstream[0].to(query.dtype)[0].transpose(0, 1)[None]  # (1, heads, T, d)
        shared = query.shape[1] // key.shape[1]
        # Laid out as (T, heads, d), as the layers before take them.
        for_query, for_key, for_value = (
            t.new_zeros(1, t.shape[2], t.shape[1], t.shape[3]).transpose(1, 2)
            for t in (query, key, value)
        )
        for block in _blocks(row_lengths, window):
            keys = slice(block.left, block.right)
            chances = _chances(query, key, block, scale, window)
            part = _group(slope, block, shared)
            for_value[0, :, keys] += torch.bmm(chances.transpose(1, 2), part)
            for_chances = torch.bmm(part, value[0, :, keys].transpose(1, 2))
            scores = torch._softmax_backward_data(for_chances, chances, -1, chances.dtype)
            scores.mul_(scale)
            of_query = torch.bmm(scores, key[0, :, keys])
            for_query[0, :, block.start : block.end] = _ungroup(of_query, shared)
            asked = _group(query, block, shared)
            for_key[0, :, keys] += torch.bmm(scores.transpose(1, 2), asked)
        return for_query, for_key, for_value, None, None, None


_BLOCK = 256  # queries at once
_VECTOR = 32


@dataclass(frozen=True)
class _Block:
    """Queries [start, end) of a row, the first key they see, and the keys [left, right) computed.

    Softmax is twice as fast over full vectors, so keys of the neighbours are taken in, and hidden.
    """

    start: int
    end: int
    first: int
    left: int
    right: int


def _blocks(row_lengths: tuple[int, ...], window: int) -> Iterator[_Block]:
    """The blocks of all rows, in order."""
    total, origin = sum(row_lengths), 0
    for length in row_lengths:
        for begin in range(0, length, _BLOCK):
            start, end = origin + begin, origin + min(begin + _BLOCK, length)
            first = max(origin, start - window + 1)
            spare = -(end - first) % _VECTOR
            right = min(total, end + spare)
            left = max(0, first - (spare - (right - end)))
            yield _Block(start, end, first, left, right)
        origin += length


def _chances(query: Tensor, key: Tensor, block: _Block, scale: float, window: int) -> Tensor:
    """softmax of the scores (key heads, queries of all heads that share one, keys)."""
    shared = query.shape[1] // key.shape[1]
    # Small masks come again and again. Of a simulated step nothing may be kept: its tensors have no
    # numbers.
    small = block.right - block.left <= 2 * _BLOCK and not isinstance(query, FakeTensor)
    hidden = _hidden if small else _hidden.__wrapped__
    mask = hidden(
        block.start - block.left,
        block.end - block.start,
        block.right - block.left,
        block.first - block.left,
        min(window, block.right - block.left),
        query.dtype,
    )
    mask = mask.repeat(shared, 1).expand(key.shape[1], -1, -1)
    keys = key[0, :, block.left : block.right].transpose(1, 2)
    return torch.softmax(torch.baddbmm(mask, _group(query, block, shared), keys, alpha=scale), -1)


def _group(heads: Tensor, block: _Block, shared: int) -> Tensor:
    """(1, heads, T, d) → (key heads, ``shared`` × queries, d) of the queries of ``block``."""
    part = heads[0, :, block.start : block.end]
    return part.reshape(part.shape[0] // shared, shared * part.shape[1], part.shape[2])


def _ungroup(part: Tensor, shared: int) -> Tensor:
    """(key heads, ``shared`` × queries, d) → (heads, queries, d)."""
    return part.view(part.shape[0] * shared, part.shape[1] // shared, part.shape[2])


@lru_cache(maxsize=64)
def _hidden(
    offset: int, queries: int, keys: int, first: int, window: int, dtype: torch.dtype
) -> Tensor:
    """Added to scores: nought where a query sees a key, minus infinity elsewhere.

    Query i is at key ``offset`` + i; keys before ``first`` are another row's.
    """
    position = torch.arange(keys)
    distance = offset + torch.arange(queries)[:, None] - position
    seen = (distance >= 0) & (distance < window) & (position >= first)
    return torch.zeros(queries, keys, dtype=dtype).masked_fill_(~seen, -torch.inf)


def _windowed(
    query: Tensor, key: Tensor, value: Tensor, window: int, how: dict[str, Any]
) -> Tensor:
    """Attention of one row in which a token sees itself and the ``window`` - 1 before it.

    ``max(window, _BLOCK)`` queries at a time, whose masks are the same ones: memory is linear in tokens.
    """
    length, step = query.shape[2], max(window, _BLOCK)
    masks: dict[tuple[int, int], Tensor] = {}
    parts = []
    for start in range(0, length, step):
        end, first = min(start + step, length), max(0, start - window + 1)
        shape = (start - first, end - start)
        if shape not in masks:
            mask = _hidden.__wrapped__(*shape, end - first, 0, window, query.dtype)
            masks[shape] = mask.to(query.device)
        parts.append(
            F.scaled_dot_product_attention(
                query[:, :, start:end],
                key[:, :, first:end],
                value[:, :, first:end],
                attn_mask=masks[shape],
                **how,
            )
        )
    return torch.cat(parts, dim=2)


def attend_capped(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    packed_rows: PackedRows | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """``attend_by_rows`` for capped scores; without ``packed_rows`` Gemma 2's own function."""
    if packed_rows is None:
        from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward

        found: tuple[Tensor, Tensor] = eager_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, softcap, **kwargs
        )
        return found
    query, key, value = _as_computed(query, key, value)
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    return attend_packed(query, key, value, packed_rows, scale, sliding_window, softcap), None


def row_inputs(model: nn.Module, row_lengths: tuple[int, ...]) -> dict[str, Any]:
    """What to call ``model`` with for attention row by row; nothing where it is not installed.

    The mask is a placeholder: a ready one of four dimensions keeps Transformers from building its
    own over all pairs of tokens.
    """
    if getattr(getattr(model, "config", None), "_attn_implementation", None) not in _REPLACED:
        return {}
    device = next(model.parameters()).device
    inputs: dict[str, Any] = {
        "row_lengths": row_lengths,
        "attention_mask": torch.zeros(1, 1, 1, 1, device=device),
    }
    if has_packed(device):
        inputs["packed_rows"] = PackedRows.of(row_lengths, device)
    return inputs


def has_packed(device: torch.device) -> bool:
    """Whether one kernel attends within all rows there."""
    return is_gpu(device)


def install(model: PreTrainedModel) -> bool:
    """Use it in ``model``; False where the architecture or its attention is not one of those known."""
    kind, name = model.config.get_text_config().model_type, NAME
    if kind in KNOWN_CAPPED and has_packed(model.device) and not model.config.attention_dropout:
        name = CAPPED
    elif kind not in KNOWN:
        return False
    if model.config._attn_implementation != _REPLACED[name]:
        return False
    model.set_attn_implementation(name)
    return True


def remove(model: PreTrainedModel) -> None:
    """Go back to the attention that ``install`` replaced."""
    replaced = _REPLACED.get(model.config._attn_implementation)
    if replaced is not None:
        model.set_attn_implementation(replaced)


AttentionInterface.register(NAME, attend_by_rows)
AttentionMaskInterface.register(NAME, sdpa_mask)  # for all calls without row lengths
AttentionInterface.register(CAPPED, attend_capped)
AttentionMaskInterface.register(CAPPED, eager_mask)
