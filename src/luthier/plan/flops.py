"""Counting the floating-point operations of whatever runs."""

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class CountFlops(TorchDispatchMode):
    """Adds up two operations a multiply-add for each matrix product and attention in its scope.

    PyTorch's own table says how many each operation takes. (Its counter follows modules besides,
    which keeps recomputed activations alive and so would spoil a count of memory.)
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func._overloadpacket in flop_registry:
            self.total += flop_registry[func._overloadpacket](*args, **kwargs, out_val=result)
        elif func.name() == "bitsandbytes::gemm_4bit":
            inputs, shape = args[0], args[2]
            self.total += 2 * inputs.numel() // shape[1] * shape[0] * shape[1]
        return result
