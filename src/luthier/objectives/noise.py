"""NEFTune: noise on the embeddings of training rows (Jain et al. 2023, arXiv:2310.05914)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from luthier.data.batches import Batch, Item
from luthier.models.adapters import inner
from luthier.models.copies import to_device
from luthier.objectives.objective import Objective, Parts


@dataclass(frozen=True)
class Noisy:
    """An objective whose model reads noisy embeddings, in steps of training alone.

        x + u,   u ~ Uniform(-1, 1) * alpha / sqrt(L d)

    with L the tokens of the row that x is in and d the model's width. The noise comes from the
    process's own random numbers, which checkpoints keep.
    """

    objective: Objective
    alpha: float

    def collate(self, items: Sequence[Item]) -> Batch:
        return self.objective.collate(items)

    def count(self, batch: Batch) -> int:
        return self.objective.count(batch)

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Parts]:
        def add_noise(module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
            if not (module.training and torch.is_grad_enabled()):  # a reference is asked
                return output
            return output + self._noise(output, batch.row_lengths)

        hook = inner(model).get_input_embeddings().register_forward_hook(add_noise)
        try:
            return self.objective.loss(model, batch)
        finally:
            hook.remove()

    def _noise(self, embedded: Tensor, lengths: Sequence[int]) -> Tensor:
        """For rows laid end to end, or for one row."""
        tokens, width = embedded.shape[-2:]
        if sum(lengths) != tokens:
            lengths = [tokens]
        sizes = [self.alpha / math.sqrt(length * width) for length in lengths]
        size = torch.tensor(sizes, dtype=embedded.dtype)
        per_token = to_device(size.repeat_interleave(torch.tensor(lengths)), embedded.device)
        return torch.empty_like(embedded).uniform_(-1, 1) * per_token[:, None]
