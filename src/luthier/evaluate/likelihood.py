"""How likely a model finds given text, row by row."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from luthier.data.batches import collate
from luthier.data.tokens import TokenRow
from luthier.events import OnEvent, ignore, tracked
from luthier.objectives.supervised import supervised_logits

# A batch has so many logits at most, each a row of the vocabulary; and so many tokens.
MOST_SUPERVISED = 512
MOST_TOKENS = 2048


@dataclass(frozen=True)
class RowLoss:
    """Sum of the cross-entropies (nats) of a row's supervised tokens, and their number."""

    sum: float
    tokens: int

    @property
    def mean(self) -> float:
        return self.sum / self.tokens


@torch.no_grad()
def row_losses(
    model: nn.Module,
    rows: Sequence[TokenRow],
    *,
    packed: bool,
    task: str = "loss",
    on_event: OnEvent = ignore,
) -> list[RowLoss]:
    """The loss of each row, in their order; each must have a supervised token.

    Args:
        model: in evaluation mode.
        packed: whether it separates packed rows; else they run one by one.
        task: what this is, in the events about its progress.
    """
    device = next(model.parameters()).device
    losses = [RowLoss(0.0, 0)] * len(rows)
    together = batches(rows, packed=packed)
    for batch in tracked(together, task, on_event, len(rows), size=len):
        collated = collate([[rows[index] for index in batch]]).to(device)
        logits, targets = supervised_logits(model, collated)
        each = F.cross_entropy(logits.float(), targets, reduction="none")
        counts = [int(rows[index].mask.sum()) for index in batch]
        for index, part in zip(batch, each.split(counts), strict=True):
            losses[index] = RowLoss(part.double().sum().item(), len(part))
    return losses


def batches(rows: Sequence[TokenRow], *, packed: bool) -> Iterator[list[int]]:
    """Indices of rows that go through the model together, the longest first."""
    batch: list[int] = []
    tokens = supervised = 0
    for index in sorted(range(len(rows)), key=lambda i: -len(rows[i])):
        size, counted = len(rows[index]), int(rows[index].mask.sum())
        full = tokens + size > MOST_TOKENS or supervised + counted > MOST_SUPERVISED
        if batch and (full or not packed):
            yield batch
            batch, tokens, supervised = [], 0, 0
        batch.append(index)
        tokens, supervised = tokens + size, supervised + counted
    if batch:
        yield batch
