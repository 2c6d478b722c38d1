"""The loss against its slow reference: each row alone, all logits, Transformers' own loss."""

from typing import Any

import pytest
import torch
from families import MODEL_FAMILIES, make_model
from helpers import gradients, random_rows
from torch import Tensor, nn

from luthier.data.batches import IGNORED, collate
from luthier.data.conversation import Conversation, Origin
from luthier.data.tokens import TokenRow
from luthier.errors import UserError
from luthier.kernels.separation import rows_stay_apart
from luthier.objectives.objective import mean_over
from luthier.objectives.sft import SFT
from luthier.objectives.supervised import loss_sum, supervised_logits


def reference_loss_sum(model: nn.Module, rows: list[TokenRow]) -> Tensor:
    """Transformers' own loss (a mean over labels) of each row alone, times its tokens, summed."""
    total = torch.zeros(())
    for row in rows:
        labels = [t if s else IGNORED for t, s in zip(row.input_ids, row.supervised, strict=True)]
        output = model(input_ids=torch.tensor([row.input_ids]), labels=torch.tensor([labels]))
        total = total + output.loss * sum(row.supervised)
    return total


@pytest.mark.parametrize("attention", [None, "eager"])  # the family's own (mostly SDPA); eager
@pytest.mark.parametrize("family", MODEL_FAMILIES)
def test_packed_loss_and_gradients_equal_the_rows_alone(family: str, attention: str | None) -> None:
    model = make_model(family, 96, attention)
    rows = random_rows(5)
    batch = collate([[row] for row in rows])
    packed = rows_stay_apart(model)
    assert packed, "every family here reads the borders of rows off position_ids"
    loss = loss_sum(model, batch, packed=packed)
    reference = reference_loss_sum(model, rows)
    assert loss.item() == pytest.approx(reference.item(), rel=1e-5)
    ours, theirs = gradients(model, loss), gradients(model, reference)
    assert ours.keys() == theirs.keys()
    for name in ours:
        scale = theirs[name].abs().max().item() + 1e-6
        assert (ours[name] - theirs[name]).abs().max().item() <= 1e-5 * scale, name


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_row_by_row_equals_packed(family: str) -> None:
    model = make_model(family, 96)
    batch = collate([random_rows(4, seed=3)])
    together, apart = (loss_sum(model, batch, packed=packed).item() for packed in (True, False))
    assert together == pytest.approx(apart, rel=1e-5)


def test_only_positions_that_predict_a_supervised_token_are_computed() -> None:
    model = make_model("llama", 96)
    rows = random_rows(3, seed=1)
    logits, targets = supervised_logits(model, collate([rows]))
    assert logits.shape == (sum(sum(row.supervised) for row in rows), 96)
    expected = [t for r in rows for t, s in zip(r.input_ids, r.supervised, strict=True) if s]
    assert targets.tolist() == expected


def test_a_model_without_logits_to_keep_takes_all_of_them() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = make_model("llama", 96)

        def forward(self, input_ids: Tensor, position_ids: Tensor, use_cache: bool) -> Any:
            return self.inner(input_ids=input_ids, position_ids=position_ids, use_cache=use_cache)

    plain = Plain()
    batch = collate([random_rows(3)])
    assert loss_sum(plain, batch).item() == pytest.approx(
        loss_sum(plain.inner, batch).item(), rel=1e-6
    )


def test_the_mean_is_over_tokens_not_over_rows_or_batches() -> None:
    model = make_model("qwen2", 96).train()
    rows = random_rows(7, seed=2)
    tokens = sum(sum(row.supervised) for row in rows)
    model.eval()
    expected = reference_loss_sum(model, rows).item() / tokens
    model.train()
    for batch_size in (1, 3, 7):
        means = mean_over(SFT(), model, rows, batch_size)
        assert means == {"loss": pytest.approx(expected, rel=1e-5)}
    assert model.training


def test_no_supervised_token_is_an_error_not_a_nan() -> None:
    row = TokenRow([1, 2], [False, False], Conversation(Origin("f", 1), text="x"))
    with pytest.raises(UserError, match=r"no row of a batch has a trainable token \(f:1\)"):
        mean_over(SFT(), make_model("llama", 96), [row], 1)
    with pytest.raises(ValueError, match="no row has a trainable token"):
        mean_over(SFT(), make_model("llama", 96), [], 1)
