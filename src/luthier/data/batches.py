"""Batches without padding: rows laid end to end, each attending to itself alone.

A micro-batch of rows with n_1 … n_B tokens becomes one sequence of T = n_1 + … + n_B tokens whose
``position_ids`` start again at 0 with each row. Transformers reads the borders off the positions
and builds the block-diagonal causal mask (``find_packed_sequence_indices``), so the model sees what
it would see of each row alone, and no token is spent on padding.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from luthier.data.packing import best_fit_decreasing
from luthier.data.tokens import TokenRow

IGNORED = -100  # the label of a token that does not count, as everywhere in PyTorch

Item = list[TokenRow]


class RowDataset(Dataset[Item]):
    """Rows one by one, or with ``packing`` bins of whole rows filled up to ``max_length`` tokens.

    Which rows share a bin is decided once; the sampler shuffles the bins.
    """

    def __init__(self, rows: Sequence[TokenRow], max_length: int, packing: bool) -> None:
        if packing:
            bins = best_fit_decreasing([len(row) for row in rows], max_length)
            self.items = [[rows[index] for index in members] for members in bins]
        else:
            self.items = [[row] for row in rows]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Item:
        return self.items[index]


def collate(items: Sequence[Item]) -> dict[str, Any]:
    """One padding-free batch: ``input_ids``, ``position_ids`` and ``labels``, each (1, T).

    ``labels`` repeat the supervised tokens in place and are ``IGNORED`` elsewhere; a row's first
    token is never supervised, so no row predicts the next. ``predicts`` (S,) are the positions
    whose logits predict a supervised token: those before one. ``row_lengths`` is a tuple.
    """
    rows = [row for item in items for row in item]
    input_ids = [token for row in rows for token in row.input_ids]
    labels = [
        token if counts else IGNORED
        for row in rows
        for token, counts in zip(row.input_ids, row.supervised, strict=True)
    ]
    positions = [position for row in rows for position in range(len(row))]
    return {
        "input_ids": torch.tensor([input_ids]),
        "position_ids": torch.tensor([positions]),
        "labels": torch.tensor([labels]),
        "predicts": torch.tensor(
            [i - 1 for i, label in enumerate(labels) if label != IGNORED], dtype=torch.long
        ),
        "row_lengths": tuple(len(row) for row in rows),
    }


def to_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """``batch`` with its tensors on ``device``."""
    return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}


def by_length(rows: Sequence[TokenRow], batch_size: int) -> list[list[TokenRow]]:
    """Batches of ``batch_size`` rows of like length, for evaluation, where order is no matter."""
    ordered = sorted(rows, key=len)
    return [ordered[i : i + batch_size] for i in range(0, len(ordered), batch_size)]
