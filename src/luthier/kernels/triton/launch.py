"""The one place where a kernel starts."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import Tensor
from torch._subclasses import FakeTensor

Grid = tuple[int] | tuple[int, int]

Watcher = Callable[[str, Sequence[Tensor]], None]

_watchers: ContextVar[tuple[Watcher, ...]] = ContextVar("watchers of kernels", default=())


@contextmanager
def told(watcher: Watcher) -> Iterator[None]:
    """Have ``watcher`` told of each kernel that a simulated step of this thread would start, and its tensors."""
    token = _watchers.set((*_watchers.get(), watcher))
    try:
        yield
    finally:
        _watchers.reset(token)


def launch(kernel: Any, grid: Grid, *tensors: Tensor, **settings: Any) -> None:
    """Run ``kernel`` on ``tensors``; a simulated step, whose tensors have no numbers, goes on without.

    Settings are named as the kernel's other arguments are, with Triton's own (``num_warps``).
    """
    if 0 in grid:
        return
    if any(isinstance(tensor, FakeTensor) or tensor.is_meta for tensor in tensors):
        for watcher in _watchers.get():
            watcher(kernel.__name__, tensors)
        return
    kernel[grid](*tensors, **settings)
