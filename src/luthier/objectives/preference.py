"""Preferences: of two answers to a prompt learn to give the better one (docs/preference.md).

One objective for pairs (dpo, ipo, orpo, simpo) and one for labelled answers (kto). Both sides of a
pair lie in one batch without padding; what is needed of the model are log-probabilities by row, which
its head gives without all logits (``kernels/head.py``).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from luthier.data.batches import Batch, Item, Judged, collate
from luthier.data.pairs import label_of
from luthier.data.tokens import TokenRow
from luthier.kernels.head import HeadLoss
from luthier.objectives import losses
from luthier.objectives.objective import PER, Parts
from luthier.objectives.reference import Reference, keeping_nothing
from luthier.objectives.supervised import log_probs, row_sums
from luthier.recipe import ObjectiveGroup


@dataclass(frozen=True)
class Preference:
    """The sum over pairs of the loss that ``settings`` names, in ``losses.py``.

    Attributes:
        reference: None for the losses that have none (orpo, simpo).
        packed, head: as of ``SFT``.
    """

    settings: ObjectiveGroup
    reference: Reference | None = None
    packed: bool = True
    head: HeadLoss | None = None

    def collate(self, items: Sequence[Item]) -> Batch:
        """Pairs end to end, the chosen row before the rejected one."""
        rows = [row for item in items for row in item]
        if self.settings.name == "orpo":
            return _with_prompts(rows)
        return replace(collate(items), judged=Judged(reference=self._known(rows)))

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Parts]:
        settings = self.settings
        beta = settings.beta
        assert beta is not None  # filled in by the recipe
        before = None if self.reference is None else self._before(model, batch)
        each = log_probs(model, batch, packed=self.packed, head=self.head)
        answers, prompts = each, each[:0]
        if batch.judged is not None and batch.judged.answers is not None:
            answers = each * batch.judged.answers
            prompts = each * ~batch.judged.answers
        chosen, rejected = _apart(row_sums(answers, batch))
        lengths = _apart(answer_lengths(batch))
        parts: Parts = {}
        if before is not None:
            ratios = (chosen - before[0], rejected - before[1])
            rewards = (beta * ratios[0], beta * ratios[1])
            if settings.name == "dpo":
                found = losses.dpo(*ratios, beta)
            else:
                found = losses.ipo(ratios[0] / lengths[0], ratios[1] / lengths[1], beta)
            moved = -(ratios[0] / lengths[0] + ratios[1] / lengths[1]) / 2
            parts["kl"] = moved
        else:
            chosen, rejected = chosen / lengths[0], rejected / lengths[1]
            rewards = (beta * chosen, beta * rejected)
            if settings.name == "simpo":
                assert settings.simpo_gamma is not None
                found = losses.simpo(chosen, rejected, beta, settings.simpo_gamma)
            else:
                found = losses.orpo(chosen, rejected, beta)
                odds = losses.log_odds(chosen, rejected)
                nll = self._nll(answers, prompts, batch)
                parts |= {
                    "nll_loss": nll.expand_as(found),
                    "log_odds_ratio": nn.functional.logsigmoid(odds),
                    "log_odds_chosen": odds,
                }
                found = found + nll
        parts |= {
            "rewards/chosen": rewards[0],
            "rewards/rejected": rewards[1],
            "rewards/accuracies": (rewards[0] > rewards[1]).float(),
            "rewards/margins": rewards[0] - rewards[1],
            "logps/chosen": chosen,
            "logps/rejected": rejected,
            "lengths/chosen": lengths[0],
            "lengths/rejected": lengths[1],
        }
        return found.sum(), {name: part.detach().sum() for name, part in parts.items()}

    def count(self, batch: Batch) -> int:
        return len(batch.row_lengths) // 2

    def ask(self, model: nn.Module, batch: Batch) -> Tensor:
        """Log-probabilities by row (B,)."""
        return row_sums(log_probs(model, batch, packed=self.packed, head=self.head), batch)

    def _known(self, rows: Sequence[TokenRow]) -> Tensor | None:
        return None if self.reference is None else self.reference.of(rows)

    def _before(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        assert self.reference is not None
        return _apart(self.reference.log_probs(model, batch, self.ask))

    def _nll(self, answers: Tensor, prompts: Tensor, batch: Batch) -> Tensor:
        """Mean cross-entropy of all tokens of the chosen rows of this batch, prompts too, as TRL has it."""
        whole = _apart(row_sums(answers + prompts, batch))[0]
        tokens = sum(batch.row_lengths[::2]) - len(batch.row_lengths) // 2  # the first has no loss
        return -whole.sum() / tokens


@dataclass(frozen=True)
class KTO:
    """The sum over labelled answers of ``losses.kto``, each kind with its weight.

    An item is a row, and its prompt with the answer of another (``data/pairs.py``). The mean ratio of
    the latter over a micro-batch, at least 0, stands for the KL divergence, as in TRL.
    """

    settings: ObjectiveGroup
    reference: Reference
    packed: bool = True
    head: HeadLoss | None = None

    def collate(self, items: Sequence[Item]) -> Batch:
        rows = [row for item in items for row in item]
        real, others = rows[::2], rows[1::2]
        labels = [label_of(row.conversation) for row in real]
        mismatched = replace(collate([others]), judged=Judged(self.reference.of(others)))
        found = Judged(self.reference.of(real), torch.tensor(labels), mismatched=mismatched)
        return replace(collate([real]), judged=found)

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Parts]:
        settings, judged = self.settings, batch.judged
        assert judged is not None and judged.mismatched is not None
        assert judged.desirable is not None and settings.beta is not None
        good = judged.desirable
        before = partial(self.reference.log_probs, model, ask=self.ask)
        known, others = before(batch), before(judged.mismatched)
        with keeping_nothing():
            asked = self.ask(model, judged.mismatched).detach()
        drift = (asked - others).mean().clamp(min=0)
        ratio = self.ask(model, batch) - known
        found = losses.kto(ratio, good, drift, settings.beta)
        found = found * torch.where(
            good, settings.desirable_weight or 1.0, settings.undesirable_weight or 1.0
        )
        rewards, lengths = settings.beta * ratio.detach(), answer_lengths(batch)
        parts: Parts = {"kl": drift.expand_as(found), "chosen": good.float()}
        parts["rejected"] = 1 - parts["chosen"]
        measured = {"rewards": rewards, "logps": ratio.detach() + known, "lengths": lengths}
        for name, value in measured.items():
            for side in ("chosen", "rejected"):
                parts[f"{name}/{side}{PER}{side}"] = value * parts[side]
        return found.sum(), {name: part.detach().sum() for name, part in parts.items()}

    def count(self, batch: Batch) -> int:
        return len(batch.row_lengths)

    def ask(self, model: nn.Module, batch: Batch) -> Tensor:
        """Log-probabilities by row (B,)."""
        return row_sums(log_probs(model, batch, packed=self.packed, head=self.head), batch)


def answer_lengths(batch: Batch) -> Tensor:
    """Tokens of the answer of each row (B,), float32; answers that were asked for alone."""
    counts = torch.ones(batch.supervised, device=batch.predicts.device)
    if batch.judged is not None and batch.judged.answers is not None:
        counts = batch.judged.answers.float()
    return row_sums(counts, batch)


def _apart(values: Tensor) -> tuple[Tensor, Tensor]:
    """Of chosen and of rejected rows (B / 2,) each."""
    pairs = values.view(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def _with_prompts(rows: Sequence[TokenRow]) -> Batch:
    """A batch in which the prompts of chosen rows count, too, and that knows which tokens are answers."""
    whole = [
        row if number % 2 else row.with_tokens(row.ids, [False] + [True] * (len(row) - 1))
        for number, row in enumerate(rows)
    ]
    batch = collate([whole])
    answers = torch.tensor([counts for row in rows for counts in row.supervised])
    return replace(batch, judged=Judged(answers=answers[batch.predicts + 1]))


def first_loss(settings: ObjectiveGroup, rows: Sequence[TokenRow]) -> float:
    """The mean loss over ``rows`` of a model that is its own reference: all ratios are 0."""
    if settings.name == "kto":
        weights = (settings.undesirable_weight, settings.desirable_weight)
        chosen = [weights[label_of(row.conversation)] or 1.0 for row in rows[::2]]
        return sum(chosen) / len(chosen) / 2
    beta = settings.beta or 1.0
    return math.log(2) if settings.name == "dpo" else (1 / (2 * beta)) ** 2
