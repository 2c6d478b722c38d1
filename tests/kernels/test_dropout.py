"""Dropout where Triton does not compute: windows of a table on a processor, elsewhere a seeded generator."""

import random

import pytest
import torch
from families import make_model
from helpers import gradients, random_rows
from torch import Tensor, nn

from luthier.data.batches import collate
from luthier.kernels import dropout
from luthier.kernels.fast import install
from luthier.models.adapters import attach_adapter
from luthier.objectives.supervised import loss_sum
from luthier.recipe import KernelsGroup, MethodGroup
from luthier.train.setup import recompute_activations

RATE = 0.3


@pytest.fixture
def other_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The processor takes the path of a device that is none."""
    monkeypatch.setattr(dropout, "has_table", lambda _: False)


def test_masks_of_a_processor_are_what_they_were() -> None:
    """To the bit, by the plain formula: a run that was begun before goes on with the same ones."""
    rows, columns, seed = 700, 1000, 9
    chances = torch.empty(2**20).uniform_(generator=torch.Generator().manual_seed(0))
    places, kept = random.Random(seed), list[Tensor]()
    for first in range(0, rows, 524):  # the rows of 2¹⁹ numbers
        count = min(524, rows - first)
        start = places.randrange(2**20 - count * columns)
        kept.append((chances >= RATE)[start : start + count * columns].view(count, columns))
    for dtype in (torch.float32, torch.bfloat16):
        values = torch.ones(rows, columns, dtype=dtype)
        assert torch.equal(dropout.drop(values, RATE, seed), torch.cat(kept).to(dtype))


@pytest.mark.usefixtures("other_device")
def test_a_generator_drops_the_same_again() -> None:
    """In place, in every dtype and wherever the values lie; what is dropped is nought, even of infinities."""
    values = torch.randn(50, 100).t()
    mask = dropout.drop(torch.ones(100, 50), RATE, 9)
    state = torch.get_rng_state()
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        ours = values.to(dtype)
        assert torch.equal(dropout.drop(ours, RATE, 9), ours * mask)
        assert torch.equal(dropout.drop_(ours.clone(), RATE, 9), ours * mask)
    assert not torch.equal(dropout.drop(torch.ones(100, 50), RATE, 10), mask)
    assert set(dropout.drop(torch.full((9, 9), torch.inf), RATE, 9).unique().tolist()) == {
        0.0,
        torch.inf,
    }
    assert torch.equal(torch.get_rng_state(), state)  # PyTorch's own numbers go on as they would


@pytest.mark.usefixtures("other_device")
@pytest.mark.parametrize("rate", [0.05, 0.5])
def test_a_generator_drops_its_share(rate: float) -> None:
    shares = [
        (dropout.drop(torch.ones(512, 512), rate, seed) == 0).double().mean() for seed in range(20)
    ]
    deviation = (rate * (1 - rate) / 2**18) ** 0.5
    assert all(abs(share - rate) < 4 * deviation for share in shares)


@pytest.mark.usefixtures("other_device")
def test_a_generator_repeats_under_recomputation() -> None:
    """The gradient is the same to the bit whether a layer is kept or computed again, and follows the seed."""
    found = []
    for recomputes, seed in ((False, 5), (True, 5), (False, 6)):
        method = MethodGroup(lora_dropout=RATE, lora_r=4)
        model = attach_adapter(make_model("llama", 96), method).train()
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                torch.manual_seed(len(name))
                nn.init.normal_(parameter, std=0.05)
        if recomputes:
            recompute_activations(model)
        install(model, KernelsGroup())
        torch.manual_seed(seed)
        found.append(gradients(model, loss_sum(model, collate([[row] for row in random_rows(2)]))))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert any(not torch.equal(found[0][name], found[2][name]) for name in found[0])
