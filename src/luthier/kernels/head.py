"""Head and cross-entropy in one, a piece of the positions at a time.

The logits of S positions over a vocabulary of V words, S × V numbers with as many for their
gradient, are the largest tensors of a training step. Here they exist for a few positions only:
loss and gradient are formed together, in the forward, and the piece is dropped.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from luthier.kernels.autocast import autocast_dtype
from luthier.kernels.triton.switch import fused, is_gpu
from luthier.models.adapters import inner

# Bytes of one piece of float32 logits: on a CPU near the size of its caches, on a GPU enough to
# keep it busy.
_PIECE = {"cpu": 2**25, "cuda": 2**28}


T = TypeVar("T")

# Of the hidden states (S, H), the layer's weight and bias, and the cap of its logits.
OfHead = Callable[[Tensor, Tensor, Tensor | None, float | None], T]

# Of the logits (P, V) of a piece, which it may overwrite, their place, and whether a gradient is wanted:
# what is found, and the gradient for the logits (P, V), which the caller may overwrite.
OfLogits = Callable[[Tensor, slice, bool], tuple[T, Tensor | None]]

NOTHING = (False, False, False)  # no gradient is wanted


class HeadLoss:
    """The output layer of a model, made to hand out the loss instead of logits."""

    def __init__(self, head: nn.Linear, softcap: float | None) -> None:
        self.head = head
        self.softcap = softcap

    @contextmanager
    def instead_of_logits(self, targets: Tensor, *, each: bool = False) -> Iterator[list[Tensor]]:
        """While it lasts, a run of the model adds the summed loss of ``targets`` to the list.

        Args:
            each: the losses of the targets (S,) instead of their sum.
        """
        loss_of = head_losses if each else head_loss
        with self.calling(lambda h, w, b, cap: loss_of(h, w, b, targets, cap)) as losses:
            yield losses

    @contextmanager
    def calling(self, of_head: OfHead[T]) -> Iterator[list[T]]:
        """While it lasts, a run of the model adds what ``of_head`` returns to the list.

        The model's own forward runs as ever, with its wrappers and hooks; only the call of its
        output layer is replaced, which gets the hidden states (1, S, H) of the kept positions.
        """
        found: list[T] = []

        def forward(hidden: Tensor) -> Tensor:
            found.append(of_head(hidden[0], self.head.weight, self.head.bias, self.softcap))
            return hidden.new_zeros(1, 1, 1)  # nobody reads these logits

        self.head.forward = forward  # type: ignore[method-assign, assignment]
        try:
            yield found
        finally:
            del self.head.forward


def find_head(model: nn.Module) -> HeadLoss | None:
    """The output layer of ``model`` where it is a plain one: linear, perhaps with capped logits."""
    base = inner(model)
    head = base.get_output_embeddings()
    if type(head) is not nn.Linear or not keeps_logits(base):
        return None
    return HeadLoss(head, getattr(base.config.get_text_config(), "final_logit_softcapping", None))


def head_agrees(model: PreTrainedModel | PeftModel, head: HeadLoss) -> bool:
    """Whether ``head`` is all that makes logits of hidden states in ``model``.

    Some models scale or shift logits after the layer; an unknown step would be missed.
    """
    seen: list[Tensor] = []
    hook = head.head.register_forward_hook(lambda _head, _inputs, output: seen.append(output))
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            tokens = torch.arange(4, device=head.head.weight.device)[None]
            logits = model(input_ids=tokens, use_cache=False).logits.float()
    finally:
        hook.remove()
        model.train(training)
    return len(seen) == 1 and torch.allclose(
        cap(seen[0].float(), head.softcap), logits, rtol=1e-2, atol=1e-3
    )


def keeps_logits(model: nn.Module) -> bool:
    """Whether the model computes logits for chosen positions only."""
    return "logits_to_keep" in inspect.signature(model.forward).parameters


def cap(logits: Tensor, softcap: float | None) -> Tensor:
    """c tanh(logits / c) (Gemma 2, section 2); the logits themselves where c is None."""
    return logits if softcap is None else torch.tanh(logits / softcap) * softcap


def head_loss(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, softcap: float | None
) -> Tensor:
    """Sum of the cross-entropies (nats, float32 scalar) of ``targets`` (S,) given ``hidden`` (S, H).

    Equal to ``cross_entropy(cap(linear(hidden, weight, bias).float()), targets, "sum")``; the
    product is computed in autocast's dtype where autocast is on.
    """
    hidden = as_computed(hidden, weight)
    if not torch.is_grad_enabled():
        return _summed(_losses(hidden, weight, bias, targets, softcap)[0], weight)
    loss: Tensor = _HeadLoss.apply(hidden, weight, bias, targets, softcap)
    return loss


def head_losses(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, softcap: float | None
) -> Tensor:
    """The cross-entropy (nats, float32) of each of ``targets``, (S,), where ``head_loss`` sums them.

    Each may have a gradient of its own. A frozen head is computed once, as in ``head_loss``; one
    that trains is computed a second time in the backward, because the gradient of its weight
    mixes the positions.
    """
    hidden = as_computed(hidden, weight)
    if not torch.is_grad_enabled():
        return _losses(hidden, weight, bias, targets, softcap)[0]
    losses: Tensor = _HeadLosses.apply(hidden, weight, bias, targets, softcap)
    return losses


def as_computed(hidden: Tensor, weight: Tensor) -> Tensor:
    return hidden.to(autocast_dtype(hidden.device) or weight.dtype)


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        softcap: float | None,
    ) -> Tensor:
        wanted = ctx.needs_input_grad[:3]
        losses, ctx.gradients = _losses(hidden, weight, bias, targets, softcap, wanted)
        return _summed(losses, weight)

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> tuple[Tensor | None, ...]:
        gradients = scaled(ctx.gradients, upstream[0])
        del ctx.gradients
        return (*gradients, None, None)


class _HeadLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        softcap: float | None,
    ) -> Tensor:
        wanted = ctx.needs_input_grad[:3]
        ctx.softcap, ctx.again = softcap, wanted[1] or wanted[2]
        if ctx.again:
            ctx.save_for_backward(hidden, weight, bias, targets)
            return _losses(hidden, weight, bias, targets, softcap)[0]
        losses, ctx.gradients = _losses(hidden, weight, bias, targets, softcap, wanted)
        return losses

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> tuple[Tensor | None, ...]:
        if ctx.again:
            hidden, weight, bias, targets = ctx.saved_tensors
            wanted = ctx.needs_input_grad[:3]
            found = _losses(hidden, weight, bias, targets, ctx.softcap, wanted, upstream[0])[1]
            return (*found, None, None)
        gradients = scaled(ctx.gradients, upstream[0][:, None])  # of hidden alone
        del ctx.gradients
        return (*gradients, None, None)


def piece_length(weight: Tensor) -> int:
    """Positions of a piece."""
    return positions_at_once(weight.shape[0], is_gpu(weight.device))


def positions_at_once(words: int, on_gpu: bool) -> int:
    """Whose logits over so many words there are at most."""
    return max(1, _PIECE["cuda" if on_gpu else "cpu"] // (4 * words))


def _summed(losses: Tensor, weight: Tensor) -> Tensor:
    """Piece by piece, the order in which sums have always been taken here: to the bit."""
    total = torch.zeros((), dtype=torch.float32, device=losses.device)
    for piece in losses.split(piece_length(weight)):
        total += piece.sum()
    return total


def in_pieces(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    of_logits: OfLogits[T],
    wanted: Sequence[bool] = NOTHING,
) -> tuple[list[T], list[Tensor | None]]:
    """What ``of_logits`` finds in each piece, and the gradients for hidden, weight and bias where wanted.

    Args:
        hidden: (S, H), in the dtype of the product.
        wanted: by gradient.
    """
    compute = weight.to(hidden.dtype)
    offset = None if bias is None else bias.to(hidden.dtype)
    for_hidden = torch.empty_like(hidden) if wanted[0] else None
    for_weight = torch.zeros_like(weight) if wanted[1] else None
    for_bias = torch.zeros_like(bias) if wanted[2] and bias is not None else None
    found: list[T] = []
    length = piece_length(weight)
    for start in range(0, hidden.shape[0], length):
        part = slice(start, start + length)
        piece = hidden[part]
        logits = nn.functional.linear(piece, compute, offset)
        of_piece, slopes = of_logits(logits, part, any(wanted))
        del logits  # before the next ones are made
        found.append(of_piece)
        if slopes is None:
            continue
        if for_bias is not None:
            for_bias += slopes.sum(0, dtype=torch.float32).to(for_bias.dtype)
        slopes = slopes.to(hidden.dtype)
        if for_hidden is not None:
            torch.mm(slopes, compute, out=for_hidden[part])
        if for_weight is not None:
            for_weight += slopes.t() @ piece
        del slopes
    return found, [for_hidden, for_weight, for_bias]


def capped(of_logits: OfLogits[T], softcap: float | None) -> OfLogits[T]:
    """``of_logits`` of capped logits, as a function of those before the cap."""
    if softcap is None:
        return of_logits

    def of_uncapped(logits: Tensor, part: slice, wanted: bool) -> tuple[T, Tensor | None]:
        logits = logits.float().div_(softcap).tanh_()
        slope = 1 - logits.square()
        found, slopes = of_logits(logits.mul_(softcap), part, wanted)
        return found, None if slopes is None else slopes.mul_(slope)

    return of_uncapped


def scaled(gradients: list[Tensor | None], upstream: Tensor) -> list[Tensor | None]:
    """``gradients`` times ``upstream``, in place: good for one backward."""
    for gradient in gradients:
        if gradient is not None:
            gradient.mul_(upstream)
    return gradients


def normaliser(logits: Tensor, chances: Tensor) -> Tensor:
    """log sum exp(x) = max x - log max softmax(x): two cheap passes, exact to float32."""
    return logits.amax(-1, keepdim=True).float() - chances.amax(-1, keepdim=True).log()


def _losses(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    softcap: float | None,
    wanted: Sequence[bool] = NOTHING,
    scale: Tensor | None = None,
) -> tuple[Tensor, list[Tensor | None]]:
    """Each cross-entropy (S,), and the gradients of their sum weighed by ``scale`` (S,), as ``in_pieces``."""

    def of_capped(logits: Tensor, part: slice, slopes: bool) -> tuple[Tensor, Tensor | None]:
        chosen = targets[part, None]
        chances = torch.softmax(logits, dim=-1, dtype=torch.float32)
        losses = (normaliser(logits, chances) - logits.gather(1, chosen).float())[:, 0]
        if not slopes:
            return losses, None
        # d loss / d logits = softmax(logits) - one at the target.
        less = torch.full_like(chosen, -1, dtype=chances.dtype)
        return losses, chances.scatter_add_(1, chosen, less)

    def of_logits(logits: Tensor, part: slice, slopes: bool) -> tuple[Tensor, Tensor | None]:
        weights = None if scale is None else scale[part]
        if fused(logits):
            from luthier.kernels.triton.cross_entropy import losses_

            losses = losses_(logits, targets[part], softcap=softcap, slopes=slopes, scale=weights)
            return losses, logits if slopes else None
        losses, found = capped(of_capped, softcap)(logits, part, slopes)
        if found is not None and weights is not None:
            found.mul_(weights[:, None])
        return losses, found

    losses, gradients = in_pieces(hidden, weight, bias, of_logits, wanted)
    if not losses:
        return torch.empty(0, dtype=torch.float32, device=hidden.device), gradients
    return torch.cat(losses), gradients
