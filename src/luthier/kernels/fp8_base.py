"""Which frozen weights of a model with an adapter are put into 8 bits, and what a device must have for it."""

from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from luthier.errors import UserError
from luthier.kernels.fp8 import MULTIPLE, FP8Linear
from luthier.kernels.lora import is_known
from luthier.models.adapters import inner

LEAST_CAPABILITY = (8, 9)  # of NVIDIA's GPUs: Ada, Hopper and later
CARDS = "compute capability 8.9: RTX 40, L4, H100 or later"


@dataclass
class Stored:
    """What became of the layers with an adapter.

    Attributes:
        layers: how many are in 8 bits.
        parameters: of their weights, together.
        uneven: how many have a side that is no multiple of 16.
        others: how many are of another kind (experts, those of DoRA, the output layer).
    """

    layers: int = 0
    parameters: int = 0
    uneven: int = 0
    others: int = 0

    def sentence(self, dtype: torch.dtype) -> str:
        """In words; ``dtype`` is that of what stays as it is."""
        name = str(dtype).removeprefix("torch.")
        text = f"the frozen weights of {self.layers} layers are in 8 bits ({self.parameters / 2**30:.2f} GiB)"
        if self.uneven:
            text += f"; {self.uneven} stay in {name}, as their sides are no multiples of {MULTIPLE}"
        if self.others:
            text += f"; {self.others} of other kinds stay in {name}"
        return text


def refuse_device(device: torch.device) -> None:
    """Raise UserError where ``device`` multiplies no 8-bit numbers, unless it is a processor."""
    if device.type == "cpu":
        return
    if device.type != "cuda" or torch.version.hip is not None:  # AMD's 8 bits are others
        name = device.type if torch.version.hip is None else "one of AMD"
        raise UserError(
            f"kernels.fp8_base needs an NVIDIA GPU, and this machine has {name}; set "
            "kernels.fp8_base=false"
        )
    capability = torch.cuda.get_device_capability(device)
    if capability < LEAST_CAPABILITY:
        raise UserError(
            f"kernels.fp8_base needs a GPU that multiplies 8-bit numbers ({CARDS}), and "
            f"{torch.cuda.get_device_name(device)} has "
            f"{capability[0]}.{capability[1]}; set kernels.fp8_base=false, or method.name=qlora for less memory"
        )


def store_in_fp8(model: PeftModel, device: torch.device) -> Stored:
    """Put the frozen weights that ``kernels/lora.py`` computes with into 8 bits, on ``device``.

    Layer by layer, so that there are never two of a whole model. All else stays where it is.

    Raises:
        UserError: there is no such layer.
    """
    stored = Stored()
    head: Any = inner(model).get_output_embeddings()
    for layer in list(model.modules()):
        if not isinstance(layer, LoraLayer):
            continue
        base = layer.get_base_layer()
        if head in (layer, base) or not is_known(layer) or type(base) not in (nn.Linear, Conv1D):
            stored.others += 1
            continue
        weight = base.weight.t() if isinstance(base, Conv1D) else base.weight
        if any(side % MULTIPLE for side in weight.shape):
            stored.uneven += 1
            continue
        layer.base_layer = FP8Linear(weight, base.bias, device)
        stored.layers += 1
        stored.parameters += weight.numel()
    if not stored.layers:
        raise UserError(
            "kernels.fp8_base: no layer of this model can be put into 8 bits; it needs adapters on plain "
            f"linear layers whose sides are multiples of {MULTIPLE}; set kernels.fp8_base=false"
        )
    return stored
