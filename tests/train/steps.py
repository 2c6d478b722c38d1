"""A learner and micro-batches for tests of the training step."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from families import make_model
from helpers import random_rows
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import get_scheduler

from luthier.data.batches import Batch, Item, collate
from luthier.objectives.objective import Objective, Parts
from luthier.objectives.sft import SFT
from luthier.objectives.supervised import supervised_logits
from luthier.train.loop import Learner


def learner(
    objective: Objective | None = None, model: nn.Module | None = None, **more: Any
) -> Learner:
    """SGD over a tiny Llama, without clipping."""
    if model is None:
        torch.manual_seed(0)
        model = make_model("llama", 96)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    return Learner(
        model,
        objective or SFT(),
        optimizer,
        get_scheduler("constant", optimizer),
        torch.device("cpu"),
        torch.float32,
        **{"max_grad_norm": 0.0, **more},
    )


def micro_batches(seed: int = 0) -> list[Batch]:
    """Four micro-batches of unequal size."""
    rows = random_rows(11, seed)
    return [collate([rows[a:b]]) for a, b in ((0, 1), (1, 5), (5, 7), (7, 11))]


def adapted() -> PeftModel:
    torch.manual_seed(0)
    model = make_model("llama", 96)
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    adapter = get_peft_model(model, config)
    assert isinstance(adapter, PeftModel)
    return adapter


@dataclass(frozen=True)
class DPO:
    """Direct preference optimisation (Rafailov et al. 2023), the reference being the adapter off.

    A micro-batch holds pairs end to end: the chosen row, then the rejected one.
    """

    beta: float = 0.1

    def collate(self, items: Sequence[Item]) -> Batch:
        return collate(items)

    def count(self, batch: Batch) -> int:
        return len(batch.row_lengths) // 2

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Parts]:
        inner = model.module if hasattr(model, "module") else model
        with torch.no_grad(), inner.disable_adapter():
            reference = self._row_chances(inner, batch)
        gained = (self._row_chances(model, batch) - reference).view(-1, 2)
        margin = self.beta * (gained[:, 0] - gained[:, 1])
        right = (margin.detach() > 0).float().sum()
        return -F.logsigmoid(margin).sum(), {"margin": margin.detach().sum(), "accuracy": right}

    def _row_chances(self, model: nn.Module, batch: Batch) -> Tensor:
        logits, targets = supervised_logits(model, batch)
        chances = -F.cross_entropy(logits, targets, reduction="none")
        counts = [row.supervised for row in batch.rows()]
        return torch.stack([part.sum() for part in chances.split(counts)])
