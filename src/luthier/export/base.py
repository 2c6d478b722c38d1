"""The frozen weights under an adapter: as its training saw them, or as they were published."""

from pathlib import Path

import torch
from torch import Tensor
from transformers import BitsAndBytesConfig, PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from luthier.errors import UserError
from luthier.export.options import Onto
from luthier.export.skeleton import four_bit_layers
from luthier.export.stored import StoredParameters
from luthier.export.weights import Weights
from luthier.kernels.nf4 import through_4bit
from luthier.models.dtype import pick_device
from luthier.models.load import load_config, refuse_cut_blocks
from luthier.models.rope import RopeScaling

_BLOCK = 64  # weights that share a quantisation constant, as Transformers loads them


class BaseWeights:
    """The tensors of a model folder by their parameter's name, each in float32.

    ``trained`` gives what the adapter learned beside: rounded to the run's dtype, and through 4 bits
    where the run kept them so. ``original`` gives what the folder holds.

    Attributes:
        stored: the parameters, as the files hold them.
        ends: the input embedding's parameter and the output layer's.
        tied_head: the output layer's parameter, where it is the input embedding's under two names.
        units: all parameters, in the groups in which they are written; most are alone.
    """

    def __init__(
        self,
        folder: Path,
        model: PreTrainedModel,
        onto: Onto,
        dtype: torch.dtype,
        quantization: BitsAndBytesConfig | None,
        trust_remote_code: bool,
    ) -> None:
        self._onto, self._dtype = onto, dtype
        # Asked now: an adapter will wrap these layers.
        self._transposed = {n for n, m in model.named_modules() if isinstance(m, Conv1D)}
        self._quantization = quantization if onto == "trained" else None
        self._four_bit: set[str] = set()
        if self._quantization is not None:
            self._four_bit = four_bit_layers(model.config, self._quantization, trust_remote_code)
        self.stored = StoredParameters(model, Weights(folder))
        embedding, head = _ends(model)
        self.ends = [name for name in (embedding, head) if name is not None]
        tied = getattr(model.config.get_text_config(), "tie_word_embeddings", False)
        self.tied_head = head if tied else None
        self.units = [unit for unit in self.stored.units if self.tied_head not in unit]
        if self.tied_head is not None:
            self.units.append((self.tied_head,))

    def shape(self, parameter: str) -> tuple[int, ...]:
        return self.stored.shapes[self._read_as(parameter)]

    def dtype(self, parameter: str) -> torch.dtype:
        """As the files have it."""
        return self.stored.dtypes[self._read_as(parameter)]

    def __call__(self, parameter: str) -> Tensor:
        """The float32 value of a parameter."""
        tensor = self.stored[self._read_as(parameter)]
        if self._onto == "original" or not tensor.is_floating_point():
            return tensor.float() if tensor.is_floating_point() else tensor
        tensor = tensor.to(self._dtype)
        layer, _, leaf = parameter.rpartition(".")
        if leaf == "weight" and layer in self._four_bit:
            tensor = self._through_4bit(layer, tensor)
        return tensor.float()

    def _read_as(self, parameter: str) -> str:
        """Tied ends are one parameter; some files hold it twice, and one is read."""
        return self.ends[0] if parameter == self.tied_head else parameter

    def _through_4bit(self, layer: str, tensor: Tensor) -> Tensor:
        assert self._quantization is not None
        device = pick_device()  # the GPU's rounding and the processor's are not quite the same
        rows = tensor.T if layer in self._transposed else tensor
        if device.type == "cpu":
            refuse_cut_blocks(layer, rows.shape[1], _BLOCK)
        expanded = through_4bit(rows.to(device), self._quantization, _BLOCK).cpu()
        return expanded.T if rows is not tensor else expanded


def _ends(model: PreTrainedModel) -> tuple[str, str | None]:
    """Names of the input embedding's and of the output layer's weight."""
    names = {id(module): name for name, module in model.named_modules()}
    head = model.get_output_embeddings()
    embedding = names[id(model.get_input_embeddings())]
    return f"{embedding}.weight", f"{names[id(head)]}.weight" if head is not None else None


def config_of(folder: Path, trust_remote_code: bool, rope: RopeScaling | None) -> PreTrainedConfig:
    """The config of a model that is stored unquantised.

    Raises:
        UserError: it is stored quantised, by whatever method.
    """
    config = load_config(folder, trust_remote_code, rope)
    if getattr(config, "quantization_config", None):
        raise UserError(
            f"{folder} is stored quantised; give the run's model.source in 16 or 32 bits"
        )
    return config
