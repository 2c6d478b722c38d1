"""Which engine serves: vLLM on a GPU, llama.cpp on a CPU where it is installed, else our own."""

import shutil
from importlib.util import find_spec
from typing import Literal

from luthier.models.dtype import pick_device

EngineName = Literal["own", "llama-cpp", "vllm"]


def pick_engine(*, own_only: str | None = None) -> tuple[EngineName, str]:
    """The engine for this machine, and why.

    Args:
        own_only: an option that was given, and that only our own engine has.
    """
    if own_only is not None:
        return "own", f"{own_only} is an option of our own engine alone"
    device = pick_device().type
    if device == "cuda":
        if shutil.which("vllm") is not None:
            return "vllm", "a CUDA GPU is here, and vLLM is installed"
        return "own", "vLLM, which would be faster on this GPU, is not installed: pip install vllm"
    if device != "cpu":
        return "own", f"the models run on {device}"
    if find_spec("xllamacpp") is not None and find_spec("gguf") is not None:
        return "llama-cpp", "llama.cpp is the fastest on a CPU, and is installed"
    return (
        "own",
        "llama.cpp, which would be faster on this CPU, is not installed: pip install "
        "'luthier[llama-cpp]'",
    )
