"""Reward models: a score for an answer, learned from which of two is better."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luthier.data.batches import Batch, Item, collate
from luthier.data.tokens import TokenRow
from luthier.events import OnEvent, ignore, tracked
from luthier.kernels.attention import row_inputs
from luthier.kernels.separation import rows_stay_apart
from luthier.models.adapters import inner
from luthier.objectives import losses
from luthier.objectives.objective import Parts
from luthier.recipe import ObjectiveGroup

_BATCH = 8  # rows, or groups of rows, that are scored at once


@dataclass(frozen=True)
class Reward:
    """The sum over pairs of ``losses.reward``, of a Transformers sequence classifier with one label.

    Attributes:
        packed: as of ``SFT``.
    """

    settings: ObjectiveGroup
    packed: bool = True

    def collate(self, items: Sequence[Item]) -> Batch:
        return collate(items)

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Parts]:
        scores = rewards(model, batch, packed=self.packed)
        chosen, rejected = scores.view(-1, 2).unbind(1)
        found = losses.reward(chosen, rejected, self.settings.center_rewards_coefficient)
        parts = {
            "rewards/chosen": chosen,
            "rewards/rejected": rejected,
            "rewards/accuracies": (chosen > rejected).float(),
            "rewards/margins": chosen - rejected,
        }
        return found.sum(), {name: part.detach().sum() for name, part in parts.items()}

    def count(self, batch: Batch) -> int:
        return len(batch.row_lengths) // 2


def rewards(model: nn.Module, batch: Batch, *, packed: bool = True) -> Tensor:
    """The score of each row (B,), float32: that of its last token that is not padding's.

    As Transformers' sequence classifiers pool, which may use a token of the template for padding.
    """
    found = []
    for piece in [batch] if packed else batch.rows():
        hidden = _before_score(model, piece)[0, _ends(model, piece)]
        layer = _layer(inner(model).score)
        with torch.autocast(hidden.device.type, enabled=False):  # few numbers, which are compared
            found.append(F.linear(hidden.float(), layer.weight.float())[:, 0])
    return torch.cat(found)


@torch.no_grad()
def rewards_of(
    model: nn.Module,
    rows: Sequence[TokenRow],
    *,
    together: int = 1,
    task: str = "rewards",
    on_event: OnEvent = ignore,
) -> list[float]:
    """The reward of each of ``rows``, in their order.

    Args:
        model: in evaluation mode.
        together: rows in a row that go through the model in one batch.
        task: what this is, in the events about its progress.
    """
    device = next(model.parameters()).device
    packed = rows_stay_apart(model)
    starts = range(0, len(rows), together)
    ordered = sorted(starts, key=lambda start: sum(map(len, rows[start : start + together])))
    batches = [
        [place for start in ordered[i : i + _BATCH] for place in range(start, start + together)]
        for i in range(0, len(ordered), _BATCH)
    ]
    found = [0.0] * len(rows)
    for places in tracked(batches, task, on_event, len(rows), size=len):
        batch = collate([[rows[place] for place in places]]).to(device)
        scores = rewards(model, batch, packed=packed).tolist()
        for place, score in zip(places, scores, strict=True):
            found[place] = score
    return found


def _before_score(model: nn.Module, batch: Batch) -> Tensor:
    """The hidden states (1, T, H) that the model's own forward, with its wrappers, hands to its score."""
    seen: list[Tensor] = []
    hook = inner(model).score.register_forward_pre_hook(lambda _layer, given: seen.append(given[0]))
    inputs: dict[str, Any] = {"input_ids": batch.input_ids, "use_cache": False}
    if batch.position_ids is not None:
        inputs["position_ids"] = batch.position_ids
    try:
        model(**inputs, **row_inputs(inner(model), batch.row_lengths))
    finally:
        hook.remove()
    return seen[0]


def _layer(score: Any) -> nn.Linear:
    """The layer that is active: beside an adapter PEFT keeps the one that trains in a wrapper."""
    trained: Any = getattr(score, "modules_to_save", None)
    found: nn.Linear = score if trained is None else next(iter(trained.values()))
    return found


def _ends(model: nn.Module, batch: Batch) -> Tensor:
    ends = torch.tensor(batch.row_lengths, device=batch.input_ids.device).cumsum(0) - 1
    padding = inner(model).config.get_text_config().pad_token_id
    if padding is None:
        return ends
    tokens = batch.input_ids[0]
    places = torch.arange(len(tokens), device=tokens.device)
    return torch.where(tokens != padding, places, 0).cummax(0).values[ends]
