"""Counting the work of whatever runs: floating-point operations, bytes moved, operations."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from luthier.plan.live import DEVICE, device_of

# Reserve or rename memory and touch none of it.
_FREE = {"aten::_unsafe_view", "aten::empty_like", "aten::empty.memory_format"}
IN_PLACE = {"aten::addmm_": torch.ops.aten.addmm}
# Products of batches of matrices are those of attention, one a head.
_BATCHED = {torch.ops.aten.bmm, torch.ops.aten.baddbmm}
# PyTorch's table lacks the processor's attention. Products of (T, D) and (S, D): two forward, five
# backward, since the scores are computed again (Dao et al. 2022, section 3.1).
_CPU_ATTENTION = {
    "aten::_scaled_dot_product_flash_attention_for_cpu": (2, 0),
    "aten::_scaled_dot_product_flash_attention_for_cpu_backward": (5, 1),
}


class CountWork(TorchDispatchMode):
    """Adds up the work of every operation in its scope, on real tensors or fake ones.

    PyTorch's own table says how many floating-point operations each takes. (Its counter follows
    modules besides, which keeps recomputed activations alive and so would spoil a count of memory.)

    Attributes:
        flops: two per multiply-add, matrix products and attention.
        attention_flops: the part of them that is attention.
        moved: bytes that all operations read and write (views none).
        operations: how many operations ran (views not counted).
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = self.attention_flops = self.moved = self.operations = 0

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
        if product in flop_registry:
            flops = flop_registry[product](*args, **kwargs, out_val=result)
            self.flops += flops
            if "attention" in name or product in _BATCHED:
                self.attention_flops += flops
        elif name in _CPU_ATTENTION:
            products, query = _CPU_ATTENTION[name]
            batch, heads, targets, width = args[query].shape
            flops = 2 * products * batch * heads * targets * args[query + 1].shape[2] * width
            self.flops += flops
            self.attention_flops += flops
        elif name == "bitsandbytes::gemm_4bit":
            inputs, shape = args[0], args[2]
            self.flops += 2 * inputs.numel() // shape[1] * shape[0] * shape[1]
            # The weight is expanded first, and read again by the product.
            self.moved += 2 * shape[0] * shape[1] * inputs.element_size()
        return result
