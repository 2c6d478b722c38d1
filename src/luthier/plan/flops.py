"""Counting the work of whatever runs: floating-point operations, bytes moved, operations."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from luthier.kernels.triton import launch
from luthier.plan.live import DEVICE, device_of

# Reserve or rename memory and touch none of it.
_FREE = {"aten::_unsafe_view", "aten::empty_like", "aten::empty.memory_format"}
IN_PLACE = {"aten::addmm_": torch.ops.aten.addmm}
# Products of batches of matrices are those of attention, one a head.
_BATCHED = {torch.ops.aten.bmm, torch.ops.aten.baddbmm}
FP8_PRODUCT = torch.ops.aten._scaled_mm
# PyTorch's table lacks the processor's attention. Products of (T, D) and (S, D): two forward, five
# backward, since the scores are computed again (Dao et al. 2022, section 3.1).
_CPU_ATTENTION = {
    "aten::_scaled_dot_product_flash_attention_for_cpu": (2, 0),
    "aten::_scaled_dot_product_flash_attention_for_cpu_backward": (5, 1),
}
# The same of a GPU's.
_GPU_ATTENTION = {"torch_attn::_varlen_attn": 2, "torch_attn::_varlen_attn_backward": 5}


def attention_on_gpu(name: str, args: tuple[Any, ...], lengths: Sequence[int]) -> int | None:
    """Operations of a GPU's attention of packed rows, those of the scores that are seen; None for others."""
    if name not in _GPU_ATTENTION:
        return None
    query = args[1] if name.endswith("backward") else args[0]
    left = next((a[0] for a in args if isinstance(a, list) and len(a) == 2), -1)
    window = left + 1 if left >= 0 else max(lengths)
    # Of row i the first min(n, w) tokens see 1, 2, …, the others w.
    full = ((min(n, window), max(0, n - window)) for n in lengths)
    seen = sum(n * (n + 1) // 2 + more * window for n, more in full)
    return int(2 * _GPU_ATTENTION[name] * query.shape[1] * query.shape[2] * seen)


def moved_by_kernel(name: str, tensors: Sequence[Tensor]) -> int:
    """Bytes that a kernel of Triton reads and writes, each tensor once."""
    moved = sum({id(t): t.numel() * t.element_size() for t in tensors}.values())
    if name == "_losses" or (name == "_drop" and tensors[0] is tensors[1]):
        # In place: what is read is written, too.
        moved += tensors[0].numel() * tensors[0].element_size()
    return moved


class CountWork(TorchDispatchMode):
    """Adds up the work of every operation in its scope, on real tensors or fake ones.

    PyTorch's own table says how many floating-point operations each takes. (Its counter follows
    modules besides, which keeps recomputed activations alive and so would spoil a count of memory.)

    Args:
        lengths: of the rows of the batch, where a GPU's attention is to be counted.

    Attributes:
        flops: two per multiply-add, matrix products and attention.
        attention_flops: the part of them that is attention.
        fp8_flops: the part of them that is products of 8-bit numbers.
        moved: bytes that all operations read and write (views none).
        operations: how many operations ran (views not counted).
    """

    def __init__(self, lengths: Sequence[int] = ()) -> None:
        super().__init__()
        self.lengths = lengths
        self.flops = self.attention_flops = self.fp8_flops = self.moved = self.operations = 0

    def of_triton(self) -> AbstractContextManager[None]:
        """Counts Triton's kernels of a simulated step, too."""
        return launch.told(self._launched)

    def _launched(self, name: str, tensors: Sequence[Tensor]) -> None:
        self.operations += 1
        self.moved += moved_by_kernel(name, tensors)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is DEVICE:
            return device_of(args[0])
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = func.name()
        if func.is_view or name in _FREE:
            return result
        self.operations += 1
        for leaf in tree_leaves((args, kwargs, result)):
            if isinstance(leaf, torch.Tensor):
                self.moved += leaf.numel() * leaf.element_size()
        product = IN_PLACE.get(name, func._overloadpacket)
        if (of_attention := attention_on_gpu(name, args, self.lengths)) is not None:
            self.flops += of_attention
            self.attention_flops += of_attention
        elif product in flop_registry:
            flops = flop_registry[product](*args, **kwargs, out_val=result)
            self.flops += flops
            if "attention" in name or product in _BATCHED:
                self.attention_flops += flops
            if product is FP8_PRODUCT:
                self.fp8_flops += flops
        elif name in _CPU_ATTENTION:
            products, query = _CPU_ATTENTION[name]
            batch, heads, targets, width = args[query].shape
            flops = 2 * products * batch * heads * targets * args[query + 1].shape[2] * width
            self.flops += flops
            self.attention_flops += flops
        elif name == "bitsandbytes::int8_scaled_mm":
            self.flops += 2 * args[0].numel() * args[1].shape[0]
        elif name == "bitsandbytes::gemm_4bit":
            inputs, shape = args[0], args[2]
            self.flops += 2 * inputs.numel() // shape[1] * shape[0] * shape[1]
            # The weight is expanded first, and read again by the product.
            self.moved += 2 * shape[0] * shape[1] * inputs.element_size()
        return result
