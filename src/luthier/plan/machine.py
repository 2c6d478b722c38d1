"""The machine that planning runs on."""

import psutil
import torch

from luthier.plan.catalogues import Accelerator, card_named
from luthier.runtime import threads_in_words

# What a process holds besides tensors. On CUDA: the context and the libraries' workspaces, by
# experience 0.5 to 1 GiB; not measured here, for want of a GPU. On a CPU: interpreter and libraries,
# the resident memory of `luthier train` before it loads a model.
CUDA_FRAMEWORK = 0.8 * 2**30
CPU_FRAMEWORK = 0.55 * 2**30


def framework_bytes(accelerator: Accelerator) -> int:
    """Bytes in use before the first tensor is allocated."""
    return round(CPU_FRAMEWORK if accelerator.is_cpu else CUDA_FRAMEWORK)


def resident_bytes() -> int:
    """Bytes of memory that this process holds now."""
    return int(psutil.Process().memory_info().rss)


def this_machine() -> Accelerator:
    """What `luthier train` would run on here."""
    if torch.cuda.is_available():
        return _cuda()
    total = psutil.virtual_memory().total
    return Accelerator(
        name=f"this machine (cpu, {threads_in_words()})",
        memory=round(total / 2**30, 1),
        is_cpu=True,
    )


def _cuda() -> Accelerator:
    name = torch.cuda.get_device_name()
    memory = torch.cuda.get_device_properties(0).total_memory / 2**30
    return card_named(name, memory) or Accelerator(name=name, memory=round(memory, 1))
