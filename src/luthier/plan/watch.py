"""What a step would do on a GPU: what it launches there, and what it waits for.

It runs on PyTorch's "meta" device, whose tensors have shapes and no numbers, while ``simulated_gpu`` has
the kernels of a GPU chosen. (A PyTorch without CUDA has no gradients of fake CUDA tensors.)
"""

from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from luthier.kernels.triton import launch
from luthier.plan.flops import FP8_PRODUCT, IN_PLACE, attention_on_gpu, moved_by_kernel

# Reserve memory, or name it anew, and touch none of it.
_FREE = {"aten::empty_like", "aten::new_empty", "aten::empty.memory_format", "aten::_unsafe_view",
         "aten::new_empty_strided", "aten::empty_strided", "aten::detach"}  # fmt: skip
# Have as many results as numbers say: the host waits for those numbers.
_READS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal",
          "aten::_unique2", "aten::is_nonzero", "aten::repeat_interleave.Tensor"}  # fmt: skip
_COPIES = {"aten::_to_copy", "aten::copy_"}


@dataclass(frozen=True)
class Kernel:
    """One launch.

    Attributes:
        kind: product, fp8 (a product of 8-bit numbers), attention or other.
        flops: two per multiply-add; of attention those of the scores that are seen.
        moved: bytes read and written, each tensor once.
    """

    name: str
    kind: str
    flops: int
    moved: int


class Watch(TorchDispatchMode):
    """Sees what waits for the device and what starts there.

    Attributes:
        waits: reads of the device other than the step's own, and copies that wait for its queue, by name.
        mixed: operations on tensors of both the host and the device, by name, which a GPU refuses.
        reads: how often the step reads the device.
        kernels: launched while ``counting``, which the step's forward and backward are: clipping and the
            update are a few launches over all tensors at once.
    """

    def __init__(self, lengths: Sequence[int]) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()
        self.mixed: Counter[str] = Counter()
        self.reads = 0
        self.kernels: list[Kernel] = []
        self.counting = False
        self.lengths = lengths

    def read(self, figures: Tensor) -> list[float]:
        """Stands for the step's own reading of numbers."""
        self.reads += 1
        return [0.0] * figures.numel()

    def waited(self) -> None:
        """A number was read that the host decides by."""
        self.waits["aten::_local_scalar_dense"] += 1

    def of_triton(self) -> AbstractContextManager[None]:
        """Sees Triton's kernels too."""
        return launch.told(self._launched)

    def _launched(self, name: str, tensors: Sequence[Tensor]) -> None:
        places = {tensor.device.type for tensor in tensors}
        if places != {"meta"}:
            self.mixed[name] += 1
        self._add(name, "other", 0, moved_by_kernel(name, tensors))

    def _add(self, name: str, kind: str, flops: int, moved: int) -> None:
        if self.counting:
            self.kernels.append(Kernel(name, kind, flops, moved))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func.name()
        inputs = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        on_gpu = any(t.is_meta for t in inputs)
        told = name == "aten::repeat_interleave.Tensor" and kwargs.get("output_size")
        if name in _READS and on_gpu and not told:
            self.waits[name] += 1
        result = func(*args, **kwargs)
        outputs = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
        both = {t.device.type for t in [*inputs, *outputs]} == {"cpu", "meta"}
        if name in _COPIES and both:
            if not kwargs.get("non_blocking", len(args) > 2 and args[2]):
                self.waits[f"{name}, blocking"] += 1
        elif both and any(
            not t.is_meta and t.ndim for t in inputs
        ):  # single numbers may be the host's
            self.mixed[name] += 1
        elif not func.is_view and name not in _FREE and any(t.is_meta for t in outputs):
            moved = sum({id(t): t.numel() * t.element_size() for t in [*inputs, *outputs]}.values())
            kind, flops = self._work(func, name, args, kwargs, result)
            self._add(name, kind, flops, moved)
        return result

    def _work(
        self, func: Any, name: str, args: tuple[Any, ...], kwargs: Any, result: Any
    ) -> tuple[str, int]:
        if (of_attention := attention_on_gpu(name, args, self.lengths)) is not None:
            return "attention", of_attention
        product = IN_PLACE.get(name, func._overloadpacket)
        if product in flop_registry:
            kind = "fp8" if product is FP8_PRODUCT else "product"
            kind = "attention" if "attention" in name else kind
            return kind, int(flop_registry[product](*args, **kwargs, out_val=result))
        return "other", 0
