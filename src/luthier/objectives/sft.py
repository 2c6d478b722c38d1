"""Supervised fine-tuning: predict the supervised tokens of each row."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from luthier.data.batches import IGNORED, Batch, Item, collate
from luthier.data.tokens import TokenRow
from luthier.errors import UserError
from luthier.kernels import fp8
from luthier.kernels.head import HeadLoss
from luthier.models.adapters import adds_nothing
from luthier.objectives.objective import Parts, mean_over
from luthier.objectives.supervised import loss_sum

_SHOWN = 3  # rows in a message
_PROBE_ROWS, _PROBE_TOKENS = 4, 512  # of the loss that is computed twice


@dataclass(frozen=True)
class SFT:
    """loss = sum_t -log p(x_t | x_<t) over the supervised tokens t of a batch, in nats.

    Attributes:
        packed: False runs row by row, for models that cannot separate packed rows.
        head: the model's output layer, where the loss can be had without all logits at once.
    """

    packed: bool = True
    head: HeadLoss | None = None

    def collate(self, items: Sequence[Item]) -> Batch:
        return collate(items)

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Parts]:
        require_supervised(batch)
        return loss_sum(model, batch, packed=self.packed, head=self.head), {}

    def count(self, batch: Batch) -> int:
        return batch.supervised


def require_supervised(batch: Batch) -> None:
    """Raise UserError where nothing of ``batch`` counts."""
    if not batch.supervised:
        rows = ", ".join(map(str, batch.origins[:_SHOWN]))
        raise UserError(
            f"no row of a batch has a trainable token ({rows}): all their labels are masked; "
            "look at them with `luthier data show`"
        )


def few_short(rows: Sequence[TokenRow]) -> list[TokenRow]:
    """A few short rows, to compute a loss of in two ways; the beginning of one where all are long."""
    shortest = sorted(rows[:200], key=len)[:_PROBE_ROWS]
    chosen: list[TokenRow] = []
    for row in shortest:
        if sum(map(len, chosen)) + len(row) <= _PROBE_TOKENS:
            chosen.append(row)
    if not chosen and any(shortest[0].supervised[:_PROBE_TOKENS]):
        chosen = [shortest[0].part(0, _PROBE_TOKENS)]
    return chosen


@torch.no_grad()
def plain_loss(model: PreTrainedModel | PeftModel, rows: Sequence[TokenRow]) -> float:
    """Mean loss (nats per supervised token) the plain way: row by row, from all logits, no adapter.

    With the adapter where it does not begin as nothing (PiSSA, OLoRA, LoftQ).
    """
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    total, count = 0.0, 0
    try:
        silent = isinstance(model, PeftModel) and adds_nothing(model)
        plain: Any = model
        with plain.disable_adapter() if silent else nullcontext():
            for row in rows:
                ids = torch.tensor([row.input_ids], device=device)
                labels = torch.tensor(row.input_ids, device=device)
                labels[~torch.tensor(row.supervised, device=device)] = IGNORED
                logits: Tensor = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
                total += F.cross_entropy(logits, labels[1:], reduction="sum").item()
                count += int((labels[1:] != IGNORED).sum())
    finally:
        model.train(training)
    return total / count


def check_first_loss(
    objective: SFT,
    model: PreTrainedModel | PeftModel,
    rows: Sequence[TokenRow],
    expected: float,
) -> None:
    """Compare the loss that training would report before its first step with ``plain_loss``.

    Training's own way is what is compared: packed, fast paths in, divided by the counted tokens. A
    new adapter changes nothing, so both are the base model's.

    Raises:
        UserError: they differ by more than rounding.
    """
    loss = mean_over(objective, model, rows, len(rows))["loss"]
    numbers = {p.dtype for p in model.parameters() if p.is_floating_point()}
    tolerance = 1e-3 if numbers <= {torch.float32} else 0.05 if fp8.DTYPE in numbers else 0.02
    if not abs(loss - expected) <= tolerance * (1 + abs(expected)):
        raise UserError(
            f"before the first step the training loss is {loss:.4f}, but the base model's loss on "
            f"the same rows is {expected:.4f}: the model in training is not the one that was loaded. Try "
            "`--set kernels.loss=false` and the other kernels to find the part, and report it"
        )
