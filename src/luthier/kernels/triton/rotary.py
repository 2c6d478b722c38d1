"""Rotary position embeddings of queries and keys in one launch: see ``kernels/rotary.py``."""

import torch
from torch import Tensor

from luthier.kernels.triton.lang import tl, triton
from luthier.kernels.triton.launch import launch


@triton.jit
def _turn(
    source, target, cos, sin, heads, half,
    from_batch, from_head, from_token, into_batch, into_head, into_token, batch, token,
    BACK: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    head, column = tl.arange(0, HEADS)[:, None], tl.arange(0, HALF)[None, :]
    inside = (head < heads) & (column < half)
    place = source + batch * from_batch + token * from_token + head * from_head + column
    first = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(place + half, mask=inside, other=0.0).to(tl.float32)
    one = tl.arange(0, HALF)[None, :]
    here = one < half
    cos_first = tl.load(cos + one, mask=here, other=0.0).to(tl.float32)
    cos_second = tl.load(cos + half + one, mask=here, other=0.0).to(tl.float32)
    sin_first = tl.load(sin + one, mask=here, other=0.0).to(tl.float32)
    sin_second = tl.load(sin + half + one, mask=here, other=0.0).to(tl.float32)
    if BACK:
        sin_first, sin_second = -sin_first, -sin_second
    place = target + batch * into_batch + token * into_token + head * into_head + column
    kind = target.dtype.element_ty
    tl.store(place, (first * cos_first - second * sin_first).to(kind), mask=inside)
    tl.store(place + half, (second * cos_second + first * sin_second).to(kind), mask=inside)


@triton.jit
def _rotate(
    query, key, turned_query, turned_key, cos, sin, q_heads, k_heads, half,
    q0, q1, q2, k0, k1, k2, tq0, tq1, tq2, tk0, tk1, tk2, cos_batch, cos_token,
    BACK: tl.constexpr, Q_HEADS: tl.constexpr, K_HEADS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    token, batch = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    angle = batch * cos_batch + token * cos_token
    _turn(
        query, turned_query, cos + angle, sin + angle, q_heads, half,
        q0, q1, q2, tq0, tq1, tq2, batch, token, BACK, Q_HEADS, HALF,
    )  # fmt: skip
    _turn(
        key, turned_key, cos + angle, sin + angle, k_heads, half,
        k0, k1, k2, tk0, tk1, tk2, batch, token, BACK, K_HEADS, HALF,
    )  # fmt: skip


def rotate(
    query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, *, back: bool = False
) -> tuple[Tensor, Tensor]:
    """Both (batch, heads, T, d), turned by the angles of ``cos`` and ``sin`` (batch or 1, 1, T, d).

    With ``back`` the other way, which is the gradient. What is returned lies in memory as (batch, T,
    heads, d), as the layers before and after have it.
    """
    query, key = (t if t.stride(-1) == 1 else t.contiguous() for t in (query, key))
    cos, sin = cos.contiguous(), sin.contiguous()
    turned = [
        torch.empty_like(t.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)
        for t in (query, key)
    ]
    batch, q_heads, tokens, width = query.shape
    names = (("q", query), ("k", key), ("tq", turned[0]), ("tk", turned[1]))
    strides = {f"{name}{axis}": t.stride(axis) for name, t in names for axis in range(3)}
    launch(
        _rotate, (tokens, batch), query, key, *turned, cos, sin,
        q_heads=q_heads, k_heads=key.shape[1], half=width // 2, **strides,
        cos_batch=cos.stride(0) if cos.shape[0] > 1 else 0, cos_token=cos.stride(2), BACK=back,
        Q_HEADS=triton.next_power_of_2(q_heads), K_HEADS=triton.next_power_of_2(key.shape[1]),
        HALF=triton.next_power_of_2(width // 2),
    )  # fmt: skip
    return turned[0], turned[1]
