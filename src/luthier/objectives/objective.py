"""What the training loop asks of an objective; nothing else in the loop knows which one runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from luthier.data.batches import Batch, Item, by_length
from luthier.data.tokens import TokenRow
from luthier.events import OnEvent, ignore, tracked

Parts = dict[str, Tensor]

CROSS_ENTROPY = "cross_entropy"  # the part of a loss that a perplexity is made of

PER = " per "  # between the names of a part and of the part that it is divided by


class Objective(Protocol):
    """A loss that is a sum over counted things, divided by their number over the full step.

    A preference objective counts pairs instead of tokens and asks the model a second time, without
    its adapter or in a frozen copy that it was given when it was made, for the reference.
    """

    def collate(self, items: Sequence[Item]) -> Batch:
        """One micro-batch of ``items``, on the CPU."""
        ...

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Parts]:
        """The summed loss of ``batch`` (float32 scalar, with gradient), and sums to log by name.

        ``model`` may be wrapped (PEFT, DistributedDataParallel); ``batch`` is on its device. Parts
        are detached float32 scalars; their means over the step go to metrics.jsonl. One that is
        called ``x per n`` is logged as ``x``, its sum over that of the part ``n``.
        """
        ...

    def count(self, batch: Batch) -> int:
        """What the loss of ``batch`` is a sum over: supervised tokens, or pairs."""
        ...


@dataclass(frozen=True, slots=True)
class Sums:
    """What an evaluation added up: of the losses (``loss``) and of each part, over ``count``."""

    totals: dict[str, float]
    count: int

    def __add__(self, other: "Sums") -> "Sums":
        names = {**self.totals, **other.totals}
        totals = {n: self.totals.get(n, 0.0) + other.totals.get(n, 0.0) for n in names}
        return Sums(totals, self.count + other.count)

    def means(self) -> dict[str, float]:
        """Of the losses, ``loss``, and of the parts, by name.

        Raises:
            ValueError: nothing counted.
        """
        if not self.count:
            raise ValueError("no row has a trainable token to take the loss of")
        return divided({name: total / self.count for name, total in self.totals.items()})


def mean_over(
    objective: Objective,
    model: nn.Module,
    rows: Sequence[TokenRow],
    batch_size: int,
    together: int = 1,
) -> dict[str, float]:
    """The objective's mean over all that counts in ``rows``: ``loss``, and its parts by name.

    ``together`` rows in a row are one of ``batch_size``, see ``RowDataset``.

    Raises:
        ValueError: nothing in ``rows`` counts.
    """
    return sums_over(objective, model, by_length(rows, batch_size, together)).means()


def sums_over(
    objective: Objective,
    model: nn.Module,
    groups: Sequence[Sequence[TokenRow]],
    on_event: OnEvent = ignore,
) -> Sums:
    """What the objective makes of ``groups`` of rows, each a batch.

    The model is put into evaluation mode and back. The device is that of its first parameter.
    """
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    totals: dict[str, float] = {"loss": 0.0}
    count = 0
    rows = sum(map(len, groups))
    asked = tracked(groups, "validation loss", on_event, total=rows, size=len)
    try:
        with torch.no_grad():
            for group in asked:
                batch = objective.collate([[row] for row in group]).to(device)
                loss, parts = objective.loss(model, batch)
                for name, value in {"loss": loss, **parts}.items():
                    totals[name] = totals.get(name, 0.0) + value.item()
                count += objective.count(batch)
    finally:
        model.train(training)
    return Sums(totals, count)


def divided(means: dict[str, float]) -> dict[str, float]:
    """Means of parts, those called ``x per n`` divided by the mean of n; without any n, none of x."""
    found = {}
    for name, value in means.items():
        what, _, of = name.partition(PER)
        if not of:
            found[name] = value
        elif means[of]:
            found[what] = value / means[of]
    return found
