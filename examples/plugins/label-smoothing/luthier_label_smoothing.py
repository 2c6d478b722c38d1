"""Cross-entropy against labels that leave a share of the probability to all other tokens.

loss = sum_t [ (1 - s) * -log p(x_t) + s * mean_v -log p(v) ] over the supervised tokens t and the
vocabulary v, with s = 0.1 (Szegedy et al. 2016, section 7).
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from luthier.data.batches import Batch, Item, collate
from luthier.objectives.supervised import supervised_logits

SMOOTHING = 0.1


class LabelSmoothing:
    """What the training loop asks of an objective: ``collate``, ``loss`` and ``count``."""

    def collate(self, items: Sequence[Item]) -> Batch:
        """One micro-batch of rows, on the CPU."""
        return collate(items)

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum over the batch, with gradient, and further sums to log by name, without."""
        logits, targets = supervised_logits(model, batch)
        logits = logits.float()
        loss = F.cross_entropy(logits, targets, label_smoothing=SMOOTHING, reduction="sum")
        return loss, {"nll": F.cross_entropy(logits.detach(), targets, reduction="sum")}

    def count(self, batch: Batch) -> int:
        """How many things the loss is a sum over; the loop divides by those of the whole step."""
        return batch.supervised
