"""How much tensor storage is allocated, operation by operation."""

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

DEVICE = torch.ops.prim.device.default  # half of what fake tensors dispatch


def device_of(tensor: Any) -> torch.device:
    """What ``DEVICE`` answers, asked of the tensor itself and of no mode between."""
    device: torch.device = type(tensor).__torch_dispatch__(DEVICE, (), (tensor,))
    return device


def _inner_bytes(operation: str, args: tuple[Any, ...]) -> int:
    """What an operation allocates inside and frees before it returns, where that is much.

    bitsandbytes' 4-bit product expands the weight, (out, in) in the input's dtype, for as long as it
    runs. FlashAttention's backward sums the gradient of the queries in float32, and makes those of keys
    and values for each head of the queries before it sums them (PyTorch's ``flash_api.cpp``,
    ``mha_varlen_bwd``).
    """
    if operation == "bitsandbytes::gemm_4bit":
        inputs, shape = args[0], args[2]
        return int(shape[0] * shape[1] * inputs.element_size())
    if operation == "torch_attn::_varlen_attn_backward":
        query, key, borders = args[1], args[2], args[6]
        tokens, heads, width = query.shape
        padded = tokens + 128 * (borders.shape[0] - 1)
        step = 32 if width <= 128 else 64
        summed = 4 * padded * heads * (-(-width // step) * step + 1)
        grouped = key.shape[1] != heads
        return summed + grouped * 2 * tokens * heads * width * query.element_size()
    return 0


class LiveStorage(TorchDispatchMode):
    """Counts the bytes of every tensor storage made in its scope for as long as it lives.

    Works on real tensors and on fake ones, which have shapes and no storage. Views share a storage
    and count once.

    Attributes:
        live: bytes alive now.
        peak: most bytes alive since ``restart_peak``.
        block: bytes in whose multiples memory is handed out.
    """

    def __init__(self, block: int = 1) -> None:
        super().__init__()
        self.block = block
        self.live = 0
        self.peak = 0
        self._sizes: dict[int, int] = {}

    def add(self, tensors: Iterable[Any]) -> None:
        """Count storages that were made elsewhere: a model's weights."""
        for tensor in tensors:
            if isinstance(tensor, torch.Tensor):
                self._count(tensor)
        self.peak = max(self.peak, self.live)

    def restart_peak(self) -> None:
        self.peak = self.live

    def _count(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._sizes:
            return
        self._sizes[key] = -(-storage.nbytes() // self.block) * self.block
        self.live += self._sizes[key]
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.live -= self._sizes.pop(key)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is DEVICE:
            return device_of(args[0])
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._count(leaf)
        self.peak = max(self.peak, self.live + _inner_bytes(func.name(), args))
        return result
