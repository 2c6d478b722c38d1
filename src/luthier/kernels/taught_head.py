"""Head and the losses of distillation in one, a piece of the positions at a time (see ``head.py``)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from luthier.kernels.head import as_computed, capped, in_pieces, normaliser, scaled

# Of a probability in float32: log of it is finite, and it is nothing beside 1.
_LEAST = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class Soft:
    """What is learned at S positions, and the weights of both losses (``Distill``).

    Attributes:
        ids: (S, k) int32, the teacher's likeliest tokens.
        log_probs: (S, k + 1) float32, their log-probabilities, and last that of all others.
        targets: (S,) int64, the rows' own tokens.
        alpha: the weight of their cross-entropy.
    """

    ids: Tensor
    log_probs: Tensor
    targets: Tensor
    temperature: float
    alpha: float

    def part(self, part: slice) -> "Soft":
        """Of the positions of ``part``."""
        return replace(
            self,
            ids=self.ids[part],
            log_probs=self.log_probs[part],
            targets=self.targets[part],
        )


def taught_head_loss(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, softcap: float | None, soft: Soft
) -> tuple[Tensor, Tensor, Tensor]:
    """Summed over S positions: the loss, with gradient, and its parts KL and cross-entropy without.

    (nats, float32 scalars.) Equal to ``taught_loss`` of all logits of ``hidden`` (S, H).
    """
    hidden = as_computed(hidden, weight)
    loss, kl, hard = _TaughtHeadLoss.apply(
        hidden, weight, bias, softcap, soft, torch.is_grad_enabled()
    )
    return loss, kl, hard


def taught_loss(logits: Tensor, soft: Soft) -> tuple[Tensor, Tensor, Tensor]:
    """``taught_head_loss`` from logits (S, V), where all of them are there."""
    ids = soft.ids.long()
    log_q = soft.log_probs
    scaled = torch.log_softmax(logits.float() / soft.temperature, -1)
    kept = torch.zeros_like(scaled, dtype=torch.bool).scatter_(1, ids, True)
    others = scaled.masked_fill(kept, -torch.inf).exp().sum(-1, keepdim=True).clamp(min=_LEAST)
    log_p = torch.cat([scaled.gather(1, ids), others.log()], -1)
    kl = (log_q.exp() * (log_q - log_p)).sum()
    hard = nn.functional.cross_entropy(logits.float(), soft.targets, reduction="sum")
    loss = (1 - soft.alpha) * soft.temperature**2 * kl + soft.alpha * hard
    return loss, kl.detach(), hard.detach()


class _TaughtHeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        softcap: float | None,
        soft: Soft,
        trains: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        wanted = [trains and needed for needed in ctx.needs_input_grad[:3]]
        found, ctx.gradients = in_pieces(
            hidden,
            weight,
            bias,
            capped(
                lambda logits, part, slopes: _of_logits(logits, soft.part(part), slopes), softcap
            ),
            wanted,
        )
        kl = torch.zeros((), dtype=torch.float32, device=hidden.device)
        hard = torch.zeros_like(kl)
        for of_teacher, of_targets in found:
            kl += of_teacher
            hard += of_targets
        ctx.mark_non_differentiable(kl, hard)
        return (1 - soft.alpha) * soft.temperature**2 * kl + soft.alpha * hard, kl, hard

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> tuple[Tensor | None, ...]:
        gradients = scaled(ctx.gradients, upstream[0])
        del ctx.gradients
        return (*gradients, None, None, None)


def _of_logits(
    logits: Tensor, soft: Soft, with_slopes: bool
) -> tuple[tuple[Tensor, Tensor], Tensor | None]:
    """Summed KL and cross-entropy of a piece, and d loss / d logits where it is wanted.

    With p the student at the temperature and q the teacher, whose bucket of other tokens is shared
    out as p shares its own, d KL / d (logits / temperature) = p - q.
    """
    ids, targets = soft.ids.long(), soft.targets[:, None]
    log_q = soft.log_probs
    one = soft.temperature == 1
    scaled = logits if one else logits.float() / soft.temperature
    chances = torch.softmax(scaled, -1, dtype=torch.float32)
    total = normaliser(scaled, chances)
    log_p = scaled.gather(1, ids).float() - total
    kept = chances.gather(1, ids)
    others = chances.scatter_(1, ids, 0).sum(-1, keepdim=True).clamp_(min=_LEAST)
    kl = (log_q.exp() * (log_q - torch.cat([log_p, others.log()], -1))).sum()
    own = torch.softmax(logits, -1, dtype=torch.float32) if with_slopes or not one else None
    if not one:
        assert own is not None
        total = normaliser(logits, own)
    hard = (total - logits.gather(1, targets).float()).sum()
    if not with_slopes:
        return (kl, hard), None
    assert own is not None
    q = log_q.exp()
    slopes = chances.mul_(1 - q[:, -1:] / others).scatter_(1, ids, kept - q[:, :-1])
    slopes.mul_((1 - soft.alpha) * soft.temperature)
    own.scatter_add_(1, targets, torch.full_like(targets, -1, dtype=own.dtype))
    return (kl, hard), slopes.add_(own, alpha=soft.alpha)


@dataclass(frozen=True)
class Top:
    """What is kept of a teacher's logits.

    Attributes:
        k: of how many tokens.
        words: tokens that the student has; a head may be padded with more.
    """

    k: int
    words: int
    temperature: float


class Found(NamedTuple):
    """What a teacher finds likely at S positions.

    Attributes:
        ids, log_probs: as of ``Soft``.
        loss: float32 scalar, its summed cross-entropy of the rows' own tokens.
    """

    ids: Tensor
    log_probs: Tensor
    loss: Tensor


def joined(parts: Sequence[Found]) -> Found:
    """One after the other."""
    ids, log_probs, losses = zip(*parts, strict=True)
    return Found(torch.cat(ids), torch.cat(log_probs), torch.stack(losses).sum())


def taught_by_head(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    softcap: float | None,
    targets: Tensor,
    top: Top,
) -> Found:
    """``taught_by`` of the logits of ``hidden`` (S, H), never all at once."""
    hidden = as_computed(hidden, weight)
    found, _ = in_pieces(
        hidden,
        weight,
        bias,
        capped(lambda logits, part, _: (taught_by(logits, targets[part], top), None), softcap),
    )
    return joined(found)


def taught_by(logits: Tensor, targets: Tensor, top: Top) -> Found:
    """What a teacher of these ``logits`` (S, V) finds likely, and its loss of ``targets`` (S,)."""
    logits = logits[:, : top.words].float()
    loss = nn.functional.cross_entropy(logits, targets, reduction="sum")
    chances = torch.log_softmax(logits / top.temperature, -1)
    kept, ids = chances.topk(top.k, -1)
    others = chances.exp_().scatter_(1, ids, 0).sum(-1, keepdim=True).clamp_(min=_LEAST)
    return Found(ids.int(), torch.cat([kept, others.log()], -1), loss)
