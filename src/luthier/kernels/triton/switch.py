"""Whether Triton's kernels compute, which is decided at the start of a run."""

from importlib.util import find_spec

import torch
from torch import Tensor

_DEVICES = ("cuda",)
_enabled = False


def enable(on: bool) -> None:
    """Use Triton's kernels in this process from now on, or no longer."""
    global _enabled
    _enabled = on


def is_for(device: torch.device) -> bool:
    """Whether Triton's kernels are for tensors of ``device``."""
    return device.type in _DEVICES


def is_installed() -> bool:
    return find_spec("triton") is not None


def fused(values: Tensor) -> bool:
    """Whether a Triton kernel computes what is made of ``values``."""
    return _enabled and is_for(values.device)
