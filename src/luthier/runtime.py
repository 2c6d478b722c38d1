"""The environment of a process: what its libraries read, its memory, its place among several."""

import ctypes
import logging
import os
import platform
import sys
import warnings
from dataclasses import dataclass

from luthier.compile_late import compile_late
from luthier.errors import UserError

# Names of mallopt's parameters in glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8

# What libraries read from the environment, and when. A variable that the user has set stays.
_ENVIRONMENT = {
    # At import. The libraries' progress bars and advice would break our output.
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "true",  # at each use
    # At the first product. oneDNN keeps a compiled product, scratch memory included, for each of the
    # last 1024 shapes it met; batches without padding all have their own shape, so that memory would
    # grow by GiBs.
    "LRU_CACHE_CAPACITY": "64",
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64",
    # At the import of torch. A thread that has nothing to do would spin, and keep the one it waits
    # for from the core that both need; benchmarks/RESULTS.md has what that costs.
    "OMP_WAIT_POLICY": "PASSIVE",
}
# At the first tensor on a GPU, under Linux. Every batch has another length; blocks of fixed sizes would
# be left over, too small for the next. PyTorch reads the older name where this one is not set.
_EXPANDS = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
_OLDER = "PYTORCH_CUDA_ALLOC_CONF"
# On a machine with nothing else to do, threads that spin for a moment are up to 15% faster where the
# pieces of work are small (4-bit weights, updates of all weights).
_SPINS = {"GOMP_SPINCOUNT": "100000"}
_QUIET = 0.5  # load per core
# At the import of torch. DistributedDataParallel warns where each batch has used each weight.
_QUIET_RANKS = {"TORCH_CPP_LOG_LEVEL": "ERROR"}


def prepare() -> None:
    """Set what the libraries of this process read from the environment; call before their import.

    May be called again. Where torch was imported before the first call, its threads stay as they
    are, and a warning says so if that costs much: if other programs keep this machine busy.
    """
    waits = "OMP_WAIT_POLICY" in os.environ  # the user's choice, or ours of an earlier call
    spins = _SPINS if not waits and _load() < _QUIET else {}
    expands = _EXPANDS if sys.platform == "linux" and _OLDER not in os.environ else {}
    quiet = _QUIET_RANKS if "WORLD_SIZE" in os.environ else {}
    for name, value in (_ENVIRONMENT | spins | expands | quiet).items():
        os.environ.setdefault(name, value)
    _hide_bars()
    compile_late()
    # Advice about optional kernels, told at each import.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # One library's advice to another, told at each model.
    warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
    # Of PEFT, about what is done right here: tied ends that come apart, bases whose biases train.
    warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True`", UserWarning)
    warnings.filterwarnings("ignore", "Careful, disabling adapter layers with bias", UserWarning)
    if not waits and _has_spinning_threads() and _load() >= 1:
        warnings.warn(
            "torch was imported before luthier, so its threads spin while they wait, and other "
            "programs keep this machine busy: training may be many times slower. Import luthier "
            "first, or start Python with OMP_WAIT_POLICY=PASSIVE",
            stacklevel=3,
        )


def _hide_bars() -> None:
    """Turn off the bars of libraries that were imported before; they have read their environment."""
    if os.environ["HF_HUB_DISABLE_PROGRESS_BARS"].upper() not in ("1", "TRUE", "YES", "ON"):
        return  # the user wants to see them
    if hub := sys.modules.get("huggingface_hub.utils"):
        hub.disable_progress_bars()
    if logging := sys.modules.get("transformers.utils.logging"):
        logging.disable_progress_bar()


def _has_spinning_threads() -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and not torch.cuda.is_available() and torch.get_num_threads() > 1


def _load() -> float:
    """Programs that wanted a core in the last minute, a core."""
    import psutil

    return float(psutil.getloadavg()[0] / (psutil.cpu_count() or 1))


@dataclass(frozen=True)
class World:
    """The processes that train together, and which of them this is.

    Attributes:
        rank: of this process among all, from 0.
        local_rank: of this process on its machine, from 0: the number of its device.
        size: how many they are.
    """

    rank: int = 0
    local_rank: int = 0
    size: int = 1


def world() -> World:
    """As torchrun says it by RANK, LOCAL_RANK and WORLD_SIZE; without them, one process.

    Raises:
        UserError: the three do not fit together.
    """
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
    told = {name: os.environ[name] for name in names if name in os.environ}
    if not told:
        return World()
    shown = ", ".join(f"{name}={value}" for name, value in told.items())
    try:
        rank, local_rank, size = (int(told[name]) for name in names)
    except (KeyError, ValueError):
        raise UserError(
            f"the environment has {shown}: RANK, LOCAL_RANK and WORLD_SIZE must all be set to integers, "
            "as torchrun sets them; unset them to train in one process"
        ) from None
    if not 0 <= local_rank <= rank < size:
        raise UserError(
            f"the environment has {shown}: RANK must be below WORLD_SIZE, and LOCAL_RANK not above "
            "RANK; start the processes with torchrun"
        )
    return World(rank, local_rank, size)


def threads_in_words() -> str:
    """How many threads a matrix product takes on a CPU, as ``1 thread`` or ``2 threads``."""
    import torch

    count = torch.get_num_threads()
    return f"{count} thread" if count == 1 else f"{count} threads"


def peak_memory() -> int:
    """Most memory this process has held, in bytes: of the GPU where there is one, else resident."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB


def keep_freed_memory() -> bool:
    """Tell the C library not to give freed memory back; False where it is not glibc.

    It maps large tensors anew for each use, and the kernel then hands out their pages one by one:
    46,000 faults per step of 880 tokens, a fifth of its time. The peak stays what it is.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    settings = ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 2**26))
    return all(library.mallopt(name, value) for name, value in settings)
