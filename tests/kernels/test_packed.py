"""Attention of packed rows on a GPU, with its kernels stood in for by what they document."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from families import MODEL_FAMILIES, make_model
from helpers import gradients, random_rows
from torch import Tensor
from torch.nn.attention import flex_attention as flex

from luthier.data.batches import collate
from luthier.kernels import attention, packed
from luthier.kernels.fast import install, install_checked
from luthier.kernels.packed import PackedRows, attend_packed
from luthier.objectives.supervised import loss_sum
from luthier.recipe import KernelsGroup

ALL = KernelsGroup()
NONE = KernelsGroup(**dict.fromkeys(KernelsGroup.model_fields, False))


def varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float,
    window_size: tuple[int, int],
    enable_gqa: bool,
) -> Tensor:
    """What ``varlen_attn`` documents: FlashAttention's window (left, 0) is ``left`` tokens before one."""
    assert cu_seq_q is cu_seq_k
    assert cu_seq_q.dtype == torch.int32
    borders = cu_seq_q.tolist()
    assert borders[0] == 0
    assert borders[-1] == len(query) == len(key)
    lengths = [end - start for start, end in pairwise(borders)]
    assert max_q == max_k == max(lengths)
    assert enable_gqa == (query.shape[1] != key.shape[1])
    left, right = window_size
    assert right == 0
    assert left == -1 or 0 <= left < max_q
    outputs = []
    for q, k, v in zip(*(t.split(lengths) for t in (query, key, value)), strict=True):
        place = torch.arange(len(q))
        before = place[:, None] - place
        seen = (before >= 0) & ((before <= left) | (left == -1))
        heads = (t.transpose(0, 1)[None] for t in (q, k, v))
        found = F.scaled_dot_product_attention(
            *heads, attn_mask=seen, scale=scale, enable_gqa=enable_gqa
        )
        outputs.append(found[0].transpose(0, 1))
    return torch.cat(outputs)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    """A CPU that takes itself for a GPU; how often each kernel was called."""
    counted = {"varlen": 0, "flex": 0, "borders": 0}

    def counting(name: str, call: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            counted[name] += 1
            return call(*args, **kwargs)

        return run

    monkeypatch.setattr(attention, "has_packed", lambda device: True)
    monkeypatch.setattr(packed, "varlen_attn", counting("varlen", varlen))
    # The check refuses gradients on a CPU, of which uncompiled flex_attention is capable.
    monkeypatch.setattr(flex, "_validate_device", lambda *_: None)
    monkeypatch.setattr(packed, "_flex", lambda: counting("flex", flex.flex_attention))
    monkeypatch.setattr(PackedRows, "of", counting("borders", PackedRows.of))
    yield counted


def loss_and_gradients(model: Any, wanted: KernelsGroup) -> Any:
    fast = install(model, wanted)
    loss = loss_sum(model, collate([[row] for row in random_rows(5)]), head=fast.head)
    found = gradients(model, loss)
    attention.remove(model)
    return loss.item(), found


@pytest.mark.parametrize("kernel", ["varlen", "flex"])
@pytest.mark.parametrize("family", MODEL_FAMILIES)
def test_families_agree_with_one_mask_over_all(
    family: str, kernel: str, calls: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loss and every gradient; each layer is one call, and the borders are made once a batch."""
    monkeypatch.setattr(packed, "_is_for_flash", lambda q, v: kernel == "varlen")
    model = make_model(family, 96)
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    if family == "gpt2":
        model.config.attn_pdrop = 0.0
    ours = loss_and_gradients(model, ALL)
    used = "flex" if family == "gemma2" else kernel
    assert calls == {"varlen": 0, "flex": 0, "borders": 1, used: 2}
    theirs = loss_and_gradients(model, NONE)
    assert calls["borders"] == 1
    assert ours[0] == pytest.approx(theirs[0], rel=2e-5)
    for name, reference in theirs[1].items():
        off = (ours[1][name] - reference).norm()
        assert off <= 2e-5 * reference.norm() + 1e-6, name


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("window", [None, 1, 5, 40])
@pytest.mark.parametrize("heads", [(4, 4), (6, 2)])
@pytest.mark.parametrize("lengths", [(7,), (1, 30, 4), (130, 3, 200)])
def test_both_kernels_agree(
    lengths: tuple[int, ...],
    heads: tuple[int, int],
    window: int | None,
    softcap: float | None,
    calls: dict[str, int],
) -> None:
    torch.manual_seed(0)
    total = sum(lengths)
    query, key, value = (torch.randn(1, h, total, 16) for h in (heads[0], heads[1], heads[1]))
    rows = PackedRows.of(lengths, query.device)
    ours = attend_packed(query, key, value, rows, 0.3, window, softcap)
    row = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    before = torch.arange(total)[:, None] - torch.arange(total)
    seen = (row[:, None] == row) & (before >= 0) & (before < (window or total))
    wide = [t.repeat_interleave(heads[0] // heads[1], 1) for t in (key, value)]
    scores = query @ wide[0].mT * 0.3
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    theirs = scores.masked_fill(~seen, -torch.inf).softmax(-1) @ wide[1]
    assert torch.allclose(ours, theirs.transpose(1, 2), atol=1e-5)
    if softcap is None:
        halves = [t.bfloat16() for t in (query, key, value)]
        again = attend_packed(*halves, rows, 0.3, window)
        assert calls["varlen"] == 1
        assert torch.allclose(again.float(), ours, atol=0.03)


@pytest.mark.parametrize("window", [1, 100, 128, 300, 10**6])
@pytest.mark.parametrize("lengths", [(7,), (128, 128, 1), (130, 3, 500), (700, 260), (1,) * 300])
def test_blocks_hold_all_scores_and_no_empty_block(lengths: tuple[int, ...], window: int) -> None:
    """Against flex_attention's own, which are made of all scores."""
    made = packed._block_mask(lengths, window, torch.device("cpu"))
    theirs = flex.create_block_mask(made.mask_mod, 1, 1, sum(lengths), sum(lengths), "cpu")
    assert torch.equal(made.to_dense(), theirs.to_dense())
    assert theirs.full_kv_num_blocks is not None
    assert made.full_kv_num_blocks is not None
    assert torch.equal(made.full_kv_num_blocks, theirs.full_kv_num_blocks)


def test_capped_attention_generates_as_before(calls: dict[str, int]) -> None:
    model = make_model("gemma2", 96)
    tokens = torch.arange(1, 21).view(2, 10)
    mask = torch.ones_like(tokens)
    mask[0, :3] = 0
    settings = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    plain = model.generate(tokens, attention_mask=mask, **settings)
    install(model, ALL)
    assert model.config._attn_implementation == attention.CAPPED
    assert torch.equal(plain, model.generate(tokens, attention_mask=mask, **settings))
    attention.remove(model)
    assert model.config._attn_implementation == "eager"


def test_dropout_of_attention_runs_row_by_row(calls: dict[str, int]) -> None:
    """No kernel for packed rows has it."""
    query = torch.randn(1, 2, 6, 8)
    rows = PackedRows.of((4, 2), query.device)
    attention.attend_by_rows(
        torch.nn.Module(), query, query, query, None, 0.5, row_lengths=(4, 2), packed_rows=rows
    )
    assert calls["varlen"] == calls["flex"] == 0


def test_a_gpu_without_the_kernel_runs_with_a_mask(
    calls: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: Any, **__: Any) -> None:
        raise RuntimeError("FlashAttention was not compiled\nfor this card")

    monkeypatch.setattr(packed, "_is_for_flash", lambda q, v: True)
    monkeypatch.setattr(packed, "varlen_attn", missing)
    model = make_model("llama", 96)
    fast = install_checked(model, ALL)
    said = (
        "attention: RuntimeError: FlashAttention was not compiled; the reference path runs instead"
    )
    assert fast.missing == [said]
    assert model.config._attn_implementation == "sdpa"
    assert fast.changed  # the other fast paths stay
    monkeypatch.setattr("luthier.kernels.gated.gated", missing)
    fast = install_checked(make_model("llama", 96), ALL)
    assert [each.split(":")[0] for each in fast.missing] == ["attention", "all"]
    assert fast.changed == []
