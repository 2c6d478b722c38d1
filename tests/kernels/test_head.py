"""Head and loss in pieces against the whole: loss and every gradient."""

import pytest
import torch
import torch.nn.functional as F
from families import MODEL_FAMILIES, make_model
from helpers import gradients, random_rows
from torch import Tensor, nn

from luthier.data.batches import collate
from luthier.kernels import head as kernel
from luthier.kernels.head import cap, find_head, head_agrees, head_loss
from luthier.objectives.supervised import loss_sum


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a few positions make several pieces, the last of them short."""
    monkeypatch.setitem(kernel._PIECE, "cpu", 4 * 96 * 5)


def reference(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, softcap: float | None
) -> Tensor:
    logits = cap(F.linear(hidden, weight, bias).float(), softcap)
    return F.cross_entropy(logits, targets, reduction="sum")


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-5), (torch.bfloat16, 0.03)]
)
def test_loss_and_gradients(
    softcap: float | None, biased: bool, dtype: torch.dtype, tolerance: float
) -> None:
    torch.manual_seed(0)
    shapes = [(23, 16), (96, 16), (96,)]
    leaves = [torch.randn(s, dtype=dtype).requires_grad_() for s in shapes]
    hidden, weight = leaves[:2]
    bias = leaves[2] if biased else None
    targets = torch.randint(96, (23,))
    found = []
    for loss in (head_loss, reference):
        for leaf in leaves:
            leaf.grad = None
        total = loss(hidden, weight, bias, targets, softcap)
        (total * 0.37).backward()
        found.append([total.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)])
    assert len(found[0]) == len(found[1])
    for ours, theirs in zip(*found, strict=True):
        assert ours is not None and theirs is not None
        assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()


@pytest.mark.usefixtures("small_pieces")
def test_extreme_logits_stay_exact() -> None:
    """A target of vanishing chance, and logits far beyond what exp can take."""
    hidden = torch.tensor([[1000.0, 0.0], [0.0, -3e4]])
    weight = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
    targets = torch.tensor([1, 2])
    ours = head_loss(hidden, weight, None, targets, None)
    assert ours.item() == pytest.approx(2000 + 3e4 + torch.log(torch.tensor(2.0)).item(), rel=1e-5)


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("family", MODEL_FAMILIES)
def test_through_every_family(family: str) -> None:
    model = make_model(family, 96)
    head = find_head(model)
    assert head is not None
    assert head_agrees(model, head)
    batch = collate([[row] for row in random_rows(5)])
    whole, pieces = loss_sum(model, batch), loss_sum(model, batch, head=head)
    assert pieces.item() == pytest.approx(whole.item(), rel=1e-5)
    ours, theirs = gradients(model, pieces), gradients(model, whole)
    assert ours.keys() == theirs.keys()
    for name in ours:
        scale = theirs[name].abs().max().item() + 1e-6
        assert (ours[name] - theirs[name]).abs().max().item() <= 2e-5 * scale, name


def test_what_is_done_to_logits_after_the_head_is_noticed() -> None:
    model = make_model("llama", 96)
    head = find_head(model)
    assert head is not None
    head.softcap = 1e-3  # not what the model does
    assert not head_agrees(model, head)


def test_a_head_with_an_adapter_is_left_alone() -> None:
    from luthier.models.adapters import attach_adapter
    from luthier.recipe import MethodGroup

    model = attach_adapter(make_model("qwen2", 96), MethodGroup(target_modules=["lm_head"]))
    assert find_head(model) is None


def test_no_tensor_is_as_large_as_all_logits() -> None:
    from luthier.plan.live import LiveStorage

    rows, words = 4096, 8192
    with LiveStorage() as live:
        weight = torch.randn(words, 8)
        hidden = torch.randn(rows, 8, requires_grad=True)
        head_loss(hidden, weight, None, torch.zeros(rows, dtype=torch.long), None).backward()
    assert live.peak < 4 * rows * words  # bytes of one copy of the logits in float32
    assert isinstance(weight, Tensor) and not isinstance(weight, nn.Parameter)
