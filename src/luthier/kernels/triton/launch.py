"""The one place where a kernel starts."""

from typing import Any

from torch import Tensor
from torch._subclasses import FakeTensor

Grid = tuple[int] | tuple[int, int]


def launch(kernel: Any, grid: Grid, *tensors: Tensor, **settings: Any) -> None:
    """Run ``kernel`` on ``tensors``; a simulated step, whose tensors have no numbers, goes on without.

    Settings are named as the kernel's other arguments are, with Triton's own (``num_warps``).
    """
    if 0 in grid or any(isinstance(tensor, FakeTensor) for tensor in tensors):
        return
    kernel[grid](*tensors, **settings)
