"""The group `kernels`."""

from pydantic import Field

from luthier.recipe.groups.group import Group


class KernelsGroup(Group):
    """Fast paths of training. All but fp8_base are exact; false runs the reference implementation instead."""

    loss: bool = Field(
        True, description="compute output head and loss in pieces, never all logits at once"
    )
    lora: bool = Field(True, description="compute frozen layer and adapter in one function")
    keep_expanded: bool = Field(
        True,
        description="with 4-bit weights and recomputation, keep a layer's expanded weights from its "
        "recomputation to its backward pass instead of expanding them again; false saves that memory",
    )
    fp8_base: bool = Field(
        False,
        description="lora: store the frozen weights of adapted layers in 8 bits and multiply with them in "
        "8 bits, which rounds; for NVIDIA GPUs of compute capability 8.9 or later",
    )
    attention: bool = Field(
        True, description="attend within each packed row on its own, not under one large mask"
    )
    norm: bool = Field(True, description="keep only the input of an RMS norm for the backward pass")
    gated: bool = Field(
        True, description="keep only the inputs of SwiGLU and GeGLU for the backward pass"
    )
    rotary: bool = Field(
        True, description="keep nothing of rotary embeddings for the backward pass"
    )
    triton: bool = Field(
        True,
        description="on an NVIDIA GPU, compute what the others name in one pass each, by kernels in Triton",
    )
