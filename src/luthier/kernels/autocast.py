"""What autocast computes in."""

import torch


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """Autocast's dtype on ``device``; None where it is off. Of "meta" tensors it is the processor's."""
    kind = "cpu" if device.type == "meta" else device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
