"""Whether Triton's kernels compute, which is decided at the start of a run."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import torch
from torch import Tensor

_DEVICES = ("cuda",)
_enabled = False
_simulating = False


def enable(on: bool) -> None:
    """Use Triton's kernels in this process from now on, or no longer."""
    global _enabled
    _enabled = on


@contextmanager
def simulated_gpu(triton: bool) -> Iterator[None]:
    """While it lasts PyTorch's "meta" device, whose tensors have no numbers, stands for a GPU.

    ``triton`` says whether its kernels are in use there.
    """
    global _enabled, _simulating
    before, _enabled, _simulating = _enabled, triton, True
    try:
        yield
    finally:
        _enabled, _simulating = before, False


def is_gpu(device: torch.device) -> bool:
    """Whether ``device`` is a GPU, or stands for one."""
    return device.type == "cuda" or (_simulating and device.type == "meta")


def is_for(device: torch.device) -> bool:
    """Whether Triton's kernels are for tensors of ``device``."""
    return device.type in _DEVICES or is_gpu(device)


def is_installed() -> bool:
    return find_spec("triton") is not None


def fused(values: Tensor) -> bool:
    """Whether a Triton kernel computes what is made of ``values``."""
    return _enabled and is_for(values.device)
