"""What a forward pass leaves for the backward, in host memory in between."""

from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks


def offloaded() -> saved_tensors_hooks:
    """While it lasts, saved tensors go to pinned host memory; parameters stay, as they are there anyway."""
    theirs: Any = save_on_cpu(pin_memory=True)

    def pack(tensor: Tensor) -> Any:
        whole = tensor if tensor._base is None else tensor._base
        return tensor if isinstance(whole, nn.Parameter) else theirs.pack_hook(tensor)

    def unpack(kept: Any) -> Tensor:
        found: Tensor = kept if isinstance(kept, Tensor) else theirs.unpack_hook(kept)
        return found

    return saved_tensors_hooks(pack, unpack)
