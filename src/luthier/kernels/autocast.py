"""What autocast computes in."""

import torch


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """Autocast's dtype on ``device``; None where it is off, and where tensors have no numbers."""
    kind = device.type
    if kind == "meta" or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)
