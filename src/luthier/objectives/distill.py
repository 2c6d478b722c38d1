"""Distillation: learn what a larger teacher finds likely at each supervised token (docs/distill.md)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from luthier.data.batches import Batch, Item, collate
from luthier.kernels.head import HeadLoss
from luthier.kernels.taught_head import Soft, taught_head_loss, taught_loss
from luthier.objectives.objective import CROSS_ENTROPY, Parts
from luthier.objectives.sft import require_supervised
from luthier.objectives.supervised import model_inputs, supervised_logits
from luthier.objectives.teacher import Lessons
from luthier.recipe import ObjectiveGroup


@dataclass(frozen=True)
class Distill:
    """loss = sum_t (1 - alpha) T² KL_t + alpha CE_t over the supervised tokens t of a batch, in nats.

        KL_t = sum_{i in K} q_i log(q_i / p_i) + q' log(q' / p'),   q = softmax(z_teacher / T),
        CE_t = -log softmax(z_student)[x_t],                        p = softmax(z_student / T)

    with K the teacher's top-k tokens at t, and q' and p' what q and p give to all others: the forward
    divergence KL(teacher ‖ student) in which those are one bucket. It is at most the full one, and
    0 where both agree on K. The weighted mean of a soft and a hard loss, and T², by which the
    gradients of the first stay the same size, are those of Hinton et al. 2015 (arXiv:1503.02531, section 2).

    Attributes:
        lessons: where a batch's ``Taught`` is from; None where batches come with it.
        packed, head: as of ``SFT``.
    """

    settings: ObjectiveGroup
    lessons: Lessons | None = None
    packed: bool = True
    head: HeadLoss | None = None

    def collate(self, items: Sequence[Item]) -> Batch:
        assert self.lessons is not None
        rows = [row for item in items for row in item]
        return replace(collate(items), taught=self.lessons.of(rows))

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Parts]:
        require_supervised(batch)
        found = [
            self._of(model, piece)
            for piece in ([batch] if self.packed else batch.rows())
            if piece.supervised
        ]
        loss, kl, hard = (sum(parts[1:], parts[0]) for parts in zip(*found, strict=True))
        return loss, {"kl": kl, CROSS_ENTROPY: hard}

    def count(self, batch: Batch) -> int:
        return batch.supervised

    def _of(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        assert batch.taught is not None
        temperature, alpha = self.settings.temperature, self.settings.alpha
        assert temperature is not None and alpha is not None  # filled in by the recipe
        taught = batch.taught
        soft = Soft(taught.ids, taught.log_probs, batch.targets, temperature, alpha)
        if self.head is None:
            return taught_loss(supervised_logits(model, batch)[0], soft)
        with self.head.calling(lambda h, w, b, cap: taught_head_loss(h, w, b, cap, soft)) as found:
            model(**model_inputs(model, batch), logits_to_keep=batch.predicts)
        return found[0]
