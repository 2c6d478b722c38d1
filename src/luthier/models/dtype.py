"""Which number format to compute in: measured on a CPU, known for a GPU.

Apple's GPUs (MPS) are chosen by what PyTorch documents of them; nothing was run on one.
"""

import time
from functools import cache

import torch

from luthier.errors import UserError
from luthier.runtime import world


def pick_device() -> torch.device:
    """The accelerator torch sees, else the CPU; of several processes each has one of its own.

    Raises:
        UserError: there are more processes on this machine than accelerators.
    """
    if not torch.accelerator.is_available():
        return torch.device("cpu")
    accelerator = torch.accelerator.current_accelerator()
    assert accelerator is not None
    here = world()
    if here.size == 1:
        return accelerator
    count = torch.accelerator.device_count()
    if here.local_rank >= count:
        raise UserError(
            f"process {here.local_rank} of this machine has no device of its own, because there are only {count}; "
            f"start at most that many (torchrun --nproc-per-node {count})"
        )
    return torch.device(accelerator.type, here.local_rank)


def pick_dtype(device: torch.device) -> torch.dtype:
    """What ``model.dtype: auto`` means on ``device``.

    CUDA: bfloat16 from compute capability 8.0 (Ampere) on, where the hardware has it, else
    float16. MPS: bfloat16 from macOS 14 on, which knows it, else float32. CPU: bfloat16 where a
    matrix product of the shapes of training is at least 1.3 times as fast in it, measured now;
    processors without AVX-512 BF16 or AMX emulate it, slower.
    """
    if device.type == "cuda":
        major, _ = torch.cuda.get_device_capability(device)
        return torch.bfloat16 if major >= 8 else torch.float16
    if device.type == "mps":
        return torch.bfloat16 if torch.backends.mps.is_macos_or_newer(14, 0) else torch.float32
    if device.type == "cpu":
        return torch.bfloat16 if bfloat16_speedup() >= 1.3 else torch.float32
    return torch.float32


def trained_dtype(optim: str) -> torch.dtype:
    """Of the weights that full fine-tuning with this optimiser trains."""
    return torch.bfloat16 if optim == "adamw_bf16" else torch.float32


@cache
def bfloat16_speedup() -> float:
    """Time of a float32 matrix product over that of the same one in bfloat16, on the CPU."""
    seconds = {dtype: _matmul_seconds(dtype) for dtype in (torch.float32, torch.bfloat16)}
    return seconds[torch.float32] / seconds[torch.bfloat16]


def _matmul_seconds(dtype: torch.dtype) -> float:
    # 512 tokens through a 1024 x 2048 layer: large enough to leave the caches, 2 GFLOP.
    left, right = torch.ones(512, 1024, dtype=dtype), torch.ones(1024, 2048, dtype=dtype)
    times: list[float] = []
    # The first pays for set-up; the least is the machine's own speed. Emulated, one can take seconds.
    while len(times) < 5 and sum(times) < 0.5:
        start = time.perf_counter()
        left @ right
        times.append(time.perf_counter() - start)
    return min(times)
