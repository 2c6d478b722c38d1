"""Copies to a device that do not wait for it."""

import torch
from torch import Tensor


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """``values``, of the host, on ``device``; a GPU goes on with its queue meanwhile.

    CUDA waits for all that is queued before it reads memory that is not pinned.
    """
    if device.type == "cuda" and torch.cuda.is_available():
        values = values.pin_memory()
    return values.to(device, non_blocking=True)
