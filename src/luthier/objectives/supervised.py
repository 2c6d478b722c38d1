"""The model on the supervised tokens of a batch: their losses, summed or apart, or their logits.

Of a row of 120 tokens perhaps 30 are supervised. The head of a model with a large vocabulary is
its largest matrix product, so the positions that do not count are skipped, and where the
model's head is a plain one its logits are never there all at once (``kernels/head.py``).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luthier.data.batches import Batch
from luthier.kernels.attention import row_inputs
from luthier.kernels.head import HeadLoss, keeps_logits
from luthier.models.adapters import inner
from luthier.models.copies import to_device


def loss_sum(
    model: nn.Module, batch: Batch, *, packed: bool = True, head: HeadLoss | None = None
) -> Tensor:
    """Sum of the cross-entropies (nats, float32 scalar) of the supervised tokens of ``batch``.

    Args:
        model: causal language model, possibly wrapped (PEFT, DistributedDataParallel).
        batch: on the model's device.
        packed: False runs row by row, for models that cannot separate packed rows.
        head: the model's output layer, where the loss can be had without all logits at once.
    """
    losses = []
    for piece in [batch] if packed else batch.rows():
        if head is not None:
            with head.instead_of_logits(piece.targets) as found:
                model(**model_inputs(model, piece), logits_to_keep=piece.predicts)
            losses += found
        else:
            logits, targets = supervised_logits(model, piece)
            losses.append(F.cross_entropy(logits.float(), targets, reduction="sum"))
    return torch.stack(losses).sum()


def log_probs(
    model: nn.Module, batch: Batch, *, packed: bool = True, head: HeadLoss | None = None
) -> Tensor:
    """log p(x_t | x_<t) of the supervised tokens of ``batch`` (S,), float32, in nats; see ``loss_sum``."""
    found = []
    for piece in [batch] if packed else batch.rows():
        if head is not None:
            with head.instead_of_logits(piece.targets, each=True) as losses:
                model(**model_inputs(model, piece), logits_to_keep=piece.predicts)
            found += losses
        else:
            logits, targets = supervised_logits(model, piece)
            found.append(F.cross_entropy(logits.float(), targets, reduction="none"))
    return -torch.cat(found)


def row_sums(values: Tensor, batch: Batch) -> Tensor:
    """Sums by row (B,) of one value for each supervised token (S,)."""
    rows = len(batch.row_lengths)
    return values.new_zeros(rows).index_add(0, row_numbers(batch), values)


def row_numbers(batch: Batch) -> Tensor:
    """The row, from 0, of each supervised token: (S,) int64."""
    ends = to_device(torch.tensor(batch.row_lengths).cumsum(0), batch.predicts.device)
    return torch.searchsorted(ends, batch.predicts, right=True)


def supervised_logits(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Logits (S, vocabulary) at the positions that predict a supervised token, and those tokens (S,)."""
    if keeps_logits(inner(model)):
        logits = model(**model_inputs(model, batch), logits_to_keep=batch.predicts).logits[0]
    else:
        logits = model(**model_inputs(model, batch)).logits[0, batch.predicts]
    return logits, batch.targets


def model_inputs(model: nn.Module, batch: Batch) -> dict[str, Any]:
    """What ``model`` is called with for ``batch``."""
    inputs: dict[str, Any] = {"input_ids": batch.input_ids, "use_cache": False}
    if batch.position_ids is not None:
        inputs["position_ids"] = batch.position_ids
    return inputs | row_inputs(inner(model), batch.row_lengths)
