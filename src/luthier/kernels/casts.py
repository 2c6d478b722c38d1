"""Adapters in the dtype of the products, cast once for each update of their weights.

Adapters are float32, so that small updates add up, and products take them in 16 bits: in the forward,
in the backward, and when a layer is computed again. What a cast gives is kept until a weight changes.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

NAME = "adapter_casts"  # of the first layer of a group, whose attribute they are


def stacked(ab: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
    """All A in one (sum of r_i, in), and each B (out_i, r_i), in ``dtype``.

    What is cast lies in one piece of memory, and a GPU casts it in one launch.
    """
    downs, ups = list(ab[::2]), list(ab[1::2])
    if all(weight.dtype == dtype for weight in ab):
        return torch.cat(downs), ups
    sources = [*downs, *ups]
    sizes = [weight.numel() for weight in sources]
    memory = downs[0].new_empty(sum(sizes), dtype=dtype)
    with torch.no_grad():
        parts = zip(memory.split(sizes), sources, strict=True)
        cast = [part.view(source.shape) for part, source in parts]
        torch._foreach_copy_(cast, sources)
    whole = memory[: sum(sizes[: len(downs)])].view(-1, downs[0].shape[1])
    return whole, cast[len(downs) :]


class Casts:
    """A and B of layers that are computed together, in another dtype than their own.

    Args:
        lay_out: makes of A_1, B_1, A_2, B_2, … and a dtype what the products take, those of A in one
            tensor; what it casts lies in one piece of memory.

    Attributes:
        keeps: whether what was cast is used again.
    """

    def __init__(
        self,
        lay_out: Callable[[Sequence[Tensor], torch.dtype], tuple[Tensor, list[Tensor]]] = stacked,
    ) -> None:
        self.keeps = True
        self._lay_out = lay_out
        self._weights: Sequence[Tensor] = ()
        self._key: object = None
        self._cast: tuple[Tensor, list[Tensor]] | None = None

    def of(self, ab: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
        """``lay_out`` of ``ab`` in ``dtype``; not to be changed."""
        if not self.keeps or all(weight.dtype == dtype for weight in ab):
            return self._lay_out(ab, dtype)
        # An update changes a tensor's version, and another tensor has another storage. The weights are
        # held, so that no other can come to lie where they lay.
        key = dtype, [(weight.untyped_storage()._cdata, weight._version) for weight in ab]
        if self._cast is None or key != self._key:
            self._cast = None
            self._cast, self._key, self._weights = self._lay_out(ab, dtype), key, ab
        return self._cast

    def kept(self) -> Iterator[Tensor]:
        """What stays in memory."""
        if self._cast is not None:
            yield self._cast[0]  # all lie in one piece of memory


def casts_of(model: nn.Module) -> Iterator[Casts]:
    """Those of all groups in ``model``."""
    for module in model.modules():
        if NAME in vars(module):
            yield vars(module)[NAME]
