"""The frozen weights under an adapter: as its training saw them, or as they were published."""

from pathlib import Path

import torch
from torch import Tensor
from transformers import BitsAndBytesConfig, PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from luthier.errors import UserError
from luthier.export.options import Onto
from luthier.export.skeleton import four_bit_layers
from luthier.export.weights import Weights
from luthier.kernels.nf4 import through_4bit
from luthier.models.dtype import pick_device
from luthier.models.load import load_config, refuse_cut_blocks

_BLOCK = 64  # weights that share a quantisation constant, as Transformers loads them


class BaseWeights:
    """The tensors of a model folder by their parameter's name, each in float32.

    ``trained`` gives what the adapter learned beside: rounded to the run's dtype, and through 4 bits
    where the run kept them so. ``original`` gives what the folder holds.

    Attributes:
        names: parameter in the model → tensor in the files.
        ends: the input embedding's parameter and the output layer's.
        tied_head: the output layer's parameter, where it is the input embedding's under two names.
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
        self.weights = Weights(folder)
        self._onto, self._dtype = onto, dtype
        # Asked now: an adapter will wrap these layers.
        self._transposed = {n for n, m in model.named_modules() if isinstance(m, Conv1D)}
        self._quantization = quantization if onto == "trained" else None
        self._four_bit: set[str] = set()
        if self._quantization is not None:
            self._four_bit = four_bit_layers(model.config, self._quantization, trust_remote_code)
        self.names = _locate(model, self.weights)
        embedding, head = _ends(model)
        self.ends = [name for name in (embedding, head) if name is not None]
        tied = getattr(model.config.get_text_config(), "tie_word_embeddings", False)
        self.tied_head = head if tied else None
        if self.tied_head is not None:  # some files hold it twice; it is read from one
            self.names[self.tied_head] = self.names[embedding]

    def __call__(self, parameter: str) -> Tensor:
        """The float32 value of a parameter."""
        tensor = self.weights[self.names[parameter]]
        if self._onto == "original" or not tensor.is_floating_point():
            return tensor.float() if tensor.is_floating_point() else tensor
        tensor = tensor.to(self._dtype)
        layer, _, leaf = parameter.rpartition(".")
        if leaf == "weight" and layer in self._four_bit:
            tensor = self._through_4bit(layer, tensor)
        return tensor.float()

    def _through_4bit(self, layer: str, tensor: Tensor) -> Tensor:
        assert self._quantization is not None
        device = pick_device()  # the GPU's rounding and the processor's are not quite the same
        rows = tensor.T if layer in self._transposed else tensor
        if device.type == "cpu":
            refuse_cut_blocks(layer, rows.shape[1], _BLOCK)
        expanded = through_4bit(rows.to(device), self._quantization, _BLOCK).cpu()
        return expanded.T if rows is not tensor else expanded


def _locate(model: PreTrainedModel, weights: Weights) -> dict[str, str]:
    """Parameter (or kept buffer) → tensor in the files, which may lack the base's prefix.

    Raises:
        UserError: the files hold a parameter in another shape than the model computes with.
    """
    prefix = f"{model.base_model_prefix}."
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found: dict[str, str] = {}
    for stored in weights:
        for name in (stored, prefix + stored, stored.removeprefix(prefix)):
            if name in expected and expected[name] == weights.shapes[stored]:
                found[name] = stored
                break
    tied = set(getattr(model, "all_tied_weights_keys", None) or {})
    parameters = dict(model.named_parameters(remove_duplicate=False))
    missing = [name for name in parameters if name not in found and name not in tied]
    if missing:
        raise UserError(
            f"the files of this model store {missing[0]} in another form than it computes with "
            f"({len(missing)} such tensors, experts for one); merging it tensor by tensor is not "
            "supported. `merge_and_unload` of PEFT does it, with all of the model in memory"
        )
    return found


def _ends(model: PreTrainedModel) -> tuple[str, str | None]:
    """Names of the input embedding's and of the output layer's weight."""
    names = {id(module): name for name, module in model.named_modules()}
    head = model.get_output_embeddings()
    embedding = names[id(model.get_input_embeddings())]
    return f"{embedding}.weight", f"{names[id(head)]}.weight" if head is not None else None


def config_of(folder: Path, trust_remote_code: bool) -> PreTrainedConfig:
    """The config of a model that is stored unquantised.

    Raises:
        UserError: it is stored quantised, by whatever method.
    """
    config = load_config(folder, trust_remote_code)
    if getattr(config, "quantization_config", None):
        raise UserError(
            f"{folder} is stored quantised; give the run's model.source in 16 or 32 bits"
        )
    return config
