"""The environment of a process."""

import sys


def peak_memory() -> int:
    """Most memory this process has held, in bytes: of the GPU where there is one, else resident."""
    import resource

    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB


def prepare() -> None:
    """Set what a process needs before its first tensor; see the branch that replaces this."""
