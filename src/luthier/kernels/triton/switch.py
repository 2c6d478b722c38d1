"""Whether Triton's kernels compute, which is decided at the start of a run."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from importlib.util import find_spec

import torch
from torch import Tensor

_DEVICES = ("cuda",)
_enabled = False


@dataclass(frozen=True)
class _Simulated:
    """A GPU that is not there: which devices stand for it, and whether Triton's kernels are in use."""

    devices: frozenset[str]
    triton: bool


_simulated: ContextVar[_Simulated | None] = ContextVar("simulated GPU", default=None)


def enable(on: bool) -> None:
    """Use Triton's kernels in this process from now on, or no longer."""
    global _enabled
    _enabled = on


@contextmanager
def simulated_gpu(triton: bool) -> Iterator[None]:
    """While it lasts, and in this thread alone, PyTorch's "meta" device stands for a GPU.

    Its tensors have no numbers. ``triton`` says whether its kernels are in use there.
    """
    with _simulating(_Simulated(frozenset({"meta"}), triton)):
        yield


@contextmanager
def fake_cpu_is_gpu() -> Iterator[None]:
    """While it lasts the processor's tensors, all of them fake, stand for those of a simulated GPU, too."""
    simulated = _simulated.get()
    if simulated is not None:
        simulated = replace(simulated, devices=simulated.devices | {"cpu"})
    with _simulating(simulated):
        yield


@contextmanager
def _simulating(simulated: _Simulated | None) -> Iterator[None]:
    token = _simulated.set(simulated)
    try:
        yield
    finally:
        _simulated.reset(token)


def is_gpu(device: torch.device) -> bool:
    """Whether ``device`` is a GPU, or stands for one."""
    simulated = _simulated.get()
    return device.type == "cuda" or (simulated is not None and device.type in simulated.devices)


def is_for(device: torch.device) -> bool:
    """Whether Triton's kernels are for tensors of ``device``."""
    return device.type in _DEVICES or is_gpu(device)


def is_installed() -> bool:
    return find_spec("triton") is not None


def fused(values: Tensor) -> bool:
    """Whether a Triton kernel computes what is made of ``values``."""
    simulated = _simulated.get()
    return (_enabled if simulated is None else simulated.triton) and is_for(values.device)
