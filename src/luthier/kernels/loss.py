"""The loss over supervised tokens, with logits for those positions only.

Of a row of 120 tokens perhaps 30 are supervised. The head of a model with a large vocabulary is
its largest matrix product, so the positions that do not count are left out of it, and where the
model's head is a plain one its logits are never there all at once (``head.py``).
"""

from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from luthier.data.batches import IGNORED, by_length, collate, to_device
from luthier.data.tokens import TokenRow
from luthier.kernels.attention import row_inputs
from luthier.kernels.head import HeadLoss, keeps_logits
from luthier.models.adapters import inner


def loss_sum(
    model: nn.Module,
    batch: dict[str, Any],
    *,
    packed: bool = True,
    head: HeadLoss | None = None,
) -> Tensor:
    """Sum of the cross-entropies (nats, float32 scalar) of the supervised tokens of ``batch``.

    Args:
        model: causal language model, possibly wrapped (PEFT, DistributedDataParallel).
        batch: as ``luthier.data.batches.collate`` makes it, on the model's device.
        packed: False runs row by row, for models that cannot keep packed rows apart.
        head: the model's output layer, where the loss can be had without all logits at once.
    """
    losses = []
    for piece in [batch] if packed else _rows(batch):
        if head is not None:
            targets = piece["labels"][0, piece["predicts"] + 1]
            with head.instead_of_logits(targets) as found:
                model(**_inputs(model, piece), logits_to_keep=piece["predicts"])
            losses += found
        else:
            logits, targets = supervised_logits(model, piece)
            losses.append(F.cross_entropy(logits.float(), targets, reduction="sum"))
    return torch.stack(losses).sum()


def supervised_logits(model: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Logits (S, vocabulary) at the positions that predict a supervised token, and those tokens (S,)."""
    positions = batch["predicts"]
    if keeps_logits(inner(model)):
        logits = model(**_inputs(model, batch), logits_to_keep=positions).logits[0]
    else:
        logits = model(**_inputs(model, batch)).logits[0, positions]
    return logits, batch["labels"][0, positions + 1]


def _inputs(model: nn.Module, batch: dict[str, Any]) -> dict[str, Any]:
    inputs = {k: v for k, v in batch.items() if k in ("input_ids", "position_ids")}
    return inputs | row_inputs(inner(model), batch["row_lengths"]) | {"use_cache": False}


def mean_loss(
    model: nn.Module,
    rows: list[TokenRow],
    batch_size: int,
    *,
    packed: bool,
    head: HeadLoss | None = None,
) -> tuple[float, int]:
    """Mean loss (nats a supervised token) of ``model`` on ``rows``, and the number of those tokens.

    The model is put into evaluation mode and back. The device is that of its first parameter.

    Raises:
        ValueError: no token of ``rows`` is supervised.
    """
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    total, count = 0.0, 0
    try:
        with torch.no_grad():
            for group in by_length(rows, batch_size):
                batch = to_device(collate([group]), device)
                total += loss_sum(model, batch, packed=packed, head=head).item()
                count += int((batch["labels"] != IGNORED).sum())
    finally:
        model.train(training)
    if not count:
        raise ValueError("no supervised tokens to take the loss of")
    return total / count, count


def _rows(batch: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a packed batch, each as a batch of its own; positions go without saying there."""
    starts = (batch["position_ids"][0] == 0).nonzero().squeeze(1).tolist()
    ends = [*starts[1:], batch["position_ids"].shape[1]]
    rows = []
    for start, end in zip(starts, ends, strict=True):
        row = {key: batch[key][:, start:end] for key in ("input_ids", "labels")}
        row["row_lengths"] = (end - start,)
        row["predicts"] = (row["labels"][0, 1:] != IGNORED).nonzero().squeeze(1)
        rows.append(row)
    return rows


@torch.no_grad()
def rows_stay_apart(model: PreTrainedModel | PeftModel) -> bool:
    """Whether packed rows are hidden from each other in this model, with this attention.

    Two short rows are run as one packed batch; then a token of the first is changed. The second
    row's logits may move only by rounding, measured against what a change of its own first token
    does to them. Models that ignore ``position_ids`` or carry a state from token to token fail.
    """
    vocabulary: int = inner(model).get_input_embeddings().weight.shape[0]
    device = next(model.parameters()).device
    first = torch.arange(1, 9, device=device) % vocabulary
    second = torch.arange(11, 19, device=device) % vocabulary
    training = model.training
    model.eval()

    def second_logits(first: Tensor, second: Tensor) -> Tensor:
        positions = torch.arange(8, device=device).repeat(2)[None]
        batch = {
            "input_ids": torch.cat([first, second])[None],
            "position_ids": positions,
            "row_lengths": (8, 8),
        }
        output = model(**_inputs(model, batch))
        return output.logits[0, 9:].float()  # behind the token that is changed

    def changed(row: Tensor) -> Tensor:
        return torch.cat([(row[:1] + 7) % vocabulary, row[1:]])

    try:
        plain = second_logits(first, second)
        leak = (second_logits(changed(first), second) - plain).norm()
        own = (second_logits(first, changed(second)) - plain).norm()
    except (TypeError, ValueError, RuntimeError):
        return False  # it cannot even be called with positions
    finally:
        model.train(training)
    return bool(leak <= 0.01 * own)
