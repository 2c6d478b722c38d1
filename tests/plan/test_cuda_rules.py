"""A simulated step by CUDA's rules: against PyTorch's own lists, and what they do to tensors."""

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from luthier.plan.cuda_rules import IN_16_BITS, IN_FLOAT32, INTO_FLOAT32, CudaRules

HEADER = Path(torch.__file__).parent / "include/ATen/autocast_mode.h"
_NOT_OURS = re.compile(  # pictures, recurrent cells, and what has another name in Python
    r"upsample|conv_t|_cell|convolution|_flash_attention|nuclear|frobenius|nll_loss2d"
)


def listed(name: str) -> set[str]:
    found = re.search(rf"#define {name}\(_\)(.*?)\n\n", HEADER.read_text("utf-8"), re.DOTALL)
    assert found is not None
    names = set(re.findall(r"_\((\w+)", found[1]))
    return {each for each in names if not _NOT_OURS.search(each)}


@pytest.mark.skipif(not HEADER.is_file(), reason="PyTorch came without its headers")
def test_the_lists_are_pytorchs() -> None:
    assert listed("AT_FORALL_LOWER_PRECISION_FP") == IN_16_BITS
    assert listed("AT_FORALL_FP32") == IN_FLOAT32
    assert listed("AT_FORALL_FP32_SET_OPT_DTYPE") == INTO_FLOAT32


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_what_is_computed_in_what(device: str) -> None:
    x = torch.ones(3, 4, dtype=torch.bfloat16, device=device)
    wide = x.float()
    with CudaRules(lambda: None), torch.autocast("cpu", torch.bfloat16):
        in_float32 = [
            *(F.layer_norm(x, (4,)), x.softmax(-1), F.softmax(x, -1), x.sum(), x**3, 2**x, x.exp()),
            F.cross_entropy(x, torch.zeros(3, dtype=torch.long, device=device)),
        ]
        in_16_bits = [F.linear(wide, wide), wide @ wide.t(), F.gelu(x), x + x]
    assert {t.dtype for t in in_float32} == {torch.float32}
    assert {t.dtype for t in in_16_bits} == {torch.bfloat16}
    with CudaRules(lambda: None):  # without autocast
        assert F.layer_norm(x, (4,)).dtype == torch.bfloat16


@pytest.mark.parametrize("masked", [False, True])
def test_attention_keeps_no_scores(masked: bool) -> None:
    heads = torch.ones(1, 2, 40, 16, dtype=torch.bfloat16, device="meta", requires_grad=True)
    mask = torch.ones(1, 1, 40, 40, dtype=torch.bool, device="meta") if masked else None
    kept: list[torch.Size] = []
    with (
        CudaRules(lambda: None),
        torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape), lambda t: t),  # type: ignore[func-returns-value]
    ):
        output = F.scaled_dot_product_attention(
            heads, heads, heads, attn_mask=mask, is_causal=not masked
        )
    assert output.shape == heads.shape
    # The mask is one for all heads, which is expanded and takes no memory.
    assert [shape for shape in kept if shape.numel() >= 2 * 40 * 40] == [(1, 2, 40, 40)] * masked


def test_a_number_that_the_host_reads_is_told_of() -> None:
    reads: list[int] = []
    with CudaRules(lambda: reads.append(1)):
        assert not (torch.ones(2, device="meta") == 1).all()
        assert torch.ones(2).all()
    assert reads == [1]
