"""Element-wise bodies compiled by torch.compile: where a run is long enough to pay for it.

A compiled body passes over its tensors once, where PyTorch's operations pass once each. Compiling takes
ten seconds or so, the first time on a machine; what came of it is kept in the model cache.
"""

import os
import shutil
from collections.abc import Callable
from functools import wraps
from importlib.util import find_spec
from typing import Any

import torch
from torch._subclasses import FakeTensor

from luthier.models.pull import cache_folder

_WORTH = 3_000  # micro-batches from which on it pays: it saves about a hundredth of their time
_enabled = False


def compilable(body: Callable[..., Any]) -> Callable[..., Any]:
    """``body``, pure and element-wise but for sums, compiled at its first call once ``enable`` ran."""
    compiled: Callable[..., Any] | None = None

    @wraps(body)
    def run(*args: Any) -> Any:
        nonlocal compiled
        if not _enabled or isinstance(args[0], FakeTensor):
            return body(*args)
        if compiled is None:
            compiled = torch.compile(body, dynamic=True)
        return compiled(*args)

    return run


def pays(asked: str, micro_batches: int, device: torch.device) -> bool:
    """Whether to compile, by ``train.compile`` and, where that is auto, by the run and the machine."""
    if asked == "auto":
        return micro_batches >= _WORTH and has_compiler(device)
    return asked == "always"


def has_compiler(device: torch.device) -> bool:
    """Whether torch.compile finds what it needs here: a C++ compiler, or Triton for a GPU."""
    if device.type == "cpu":
        return any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++")))
    return find_spec("triton") is not None


def enable(on: bool) -> None:
    """Use compiled bodies in this process from now on, or no longer."""
    global _enabled
    _enabled = on
    if on:
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "compiled"))
