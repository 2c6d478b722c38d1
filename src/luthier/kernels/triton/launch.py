"""The one place where a kernel starts."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch._subclasses import FakeTensor

Grid = tuple[int] | tuple[int, int]

# Told of each kernel that a simulated step would start, and of its tensors.
watchers: list[Callable[[str, Sequence[Tensor]], None]] = []


def launch(kernel: Any, grid: Grid, *tensors: Tensor, **settings: Any) -> None:
    """Run ``kernel`` on ``tensors``; a simulated step, whose tensors have no numbers, goes on without.

    Settings are named as the kernel's other arguments are, with Triton's own (``num_warps``).
    """
    if 0 in grid:
        return
    if any(isinstance(tensor, FakeTensor) or tensor.is_meta for tensor in tensors):
        for watcher in watchers:
            watcher(kernel.__name__, tensors)
        return
    kernel[grid](*tensors, **settings)
