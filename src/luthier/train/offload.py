"""What a forward pass leaves for the backward, in host memory in between.

Copies run on a stream of their own beside the computation: out while the forward goes on, and back ahead of the
layers that the backward comes to, which takes in reverse what the forward left.
"""

from typing import Any, Protocol
from weakref import ref

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

_AHEAD = 4  # tensors that are on their way back before they are asked for
_LEAST = 2**16  # bytes; smaller ones stay, for starting a copy takes longer than it


class Side(Protocol):
    """Copies beside the computation."""

    def out(self, tensor: Tensor) -> Tensor:
        """``tensor`` in host memory, once what is queued now has been computed."""
        ...

    def back(self, kept: Tensor, device: torch.device) -> tuple[Tensor, Any]:
        """``kept`` on ``device``, and what to wait for before it is read."""
        ...

    def wait(self, arrived: Any) -> None:
        """Have the computation wait, and not the host."""
        ...


class CudaSide:
    """A stream of CUDA's, and pinned memory."""

    def __init__(self) -> None:
        self.stream = torch.cuda.Stream()

    def out(self, tensor: Tensor) -> Tensor:
        kept = torch.empty_like(tensor, device="cpu", pin_memory=True)
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            kept.copy_(tensor, non_blocking=True)
        tensor.record_stream(self.stream)  # its memory is nobody's else before it is copied
        return kept

    def back(self, kept: Tensor, device: torch.device) -> tuple[Tensor, Any]:
        with torch.cuda.stream(self.stream):
            tensor = kept.to(device, non_blocking=True)
            arrived = self.stream.record_event()
        tensor.record_stream(torch.cuda.current_stream())
        return tensor, arrived

    def wait(self, arrived: Any) -> None:
        torch.cuda.current_stream().wait_event(arrived)


class _Kept:
    """A saved tensor in host memory, or on its way back; the graph holds it."""

    def __init__(self, tensor: Tensor, side: Side, place: int) -> None:
        self.device = tensor.device
        self.kept = side.out(tensor)
        self.place = place
        self.coming: tuple[Tensor, Any] | None = None
        self.taken = False

    def fetch(self, side: Side) -> tuple[Tensor, Any]:
        if self.coming is None:
            self.coming = side.back(self.kept, self.device)
        return self.coming

    def take(self, side: Side) -> Tensor:
        tensor, arrived = self.fetch(side)
        self.coming, self.taken = None, True
        side.wait(arrived)
        return tensor


class offloaded(saved_tensors_hooks):  # noqa: N801 (a context, as PyTorch's own are)
    """While it lasts, saved tensors wait in host memory; parameters stay, as they are there anyway."""

    def __init__(self, side: Side) -> None:
        self._side = side
        self._order: list[ref[_Kept]] = []
        super().__init__(self._pack, self._unpack)

    def _pack(self, tensor: Tensor) -> Tensor | _Kept:
        whole = tensor if tensor._base is None else tensor._base
        small = tensor.numel() * tensor.element_size() < _LEAST
        if small or isinstance(whole, nn.Parameter):
            return tensor
        kept = _Kept(tensor, self._side, len(self._order))
        self._order.append(ref(kept))
        return kept

    def _unpack(self, found: Tensor | _Kept) -> Tensor:
        if isinstance(found, Tensor):
            return found
        tensor = found.take(self._side)
        for place in range(found.place - 1, max(-1, found.place - 1 - _AHEAD), -1):
            kept = self._order[place]()
            if kept is not None and not kept.taken:
                kept.fetch(self._side)
        return tensor
