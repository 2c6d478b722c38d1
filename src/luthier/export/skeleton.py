"""A model with every layer and no weights, on which PEFT puts adapters."""

from pathlib import Path

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import ParamWrapper
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedConfig, PreTrainedModel
from transformers.quantizers.auto import AutoHfQuantizer

from luthier.kernels.nf4 import is_4bit
from luthier.models.adapters import load_adapter


def skeleton(config: PreTrainedConfig, trust_remote_code: bool) -> PreTrainedModel:
    """The float32 model of ``config`` on the CPU, its parameters zeros that take no memory."""
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, trust_remote_code=trust_remote_code
        )
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            # Not on the meta device: PEFT moves an adapter to where its layer is. It also stores
            # the base's embedding beside an adapter on it, and biases that train, which then need
            # room of their own.
            own = module in ends or parameter.ndim < 2
            value = torch.zeros(parameter.shape) if own else _one_zero(parameter.shape)
            module.register_parameter(name, nn.Parameter(value, requires_grad=False))
    return model


def _one_zero(shape: torch.Size) -> Tensor:
    return torch.zeros(()).expand(shape)


def adapted(
    config: PreTrainedConfig, adapters: dict[str, Path], trust_remote_code: bool
) -> PeftModel:
    """The skeleton with the adapters of these folders on it, each under its name."""
    (first, folder), *others = adapters.items()
    model = load_adapter(skeleton(config, trust_remote_code), folder, first)
    for name, folder in others:
        model.load_adapter(str(folder), adapter_name=name)
    return model


def lora_layers(model: PeftModel) -> dict[str, LoraLayer]:
    """The adapted layers by the parameter of the base model that they change."""
    found: dict[str, LoraLayer] = {}
    for name, module in model.get_base_model().named_modules():
        if isinstance(module, ParamWrapper):  # several around one module, one for each parameter
            found[f"{name.replace('.base_layer', '')}.{module.parameter_name}"] = module
        elif isinstance(module, LoraLayer):
            found[f"{name}.weight"] = module
    return found


def four_bit_layers(
    config: PreTrainedConfig, quantization: BitsAndBytesConfig, trust_remote_code: bool
) -> set[str]:
    """Names of the layers that Transformers keeps in 4 bits when it loads this model so."""
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, trust_remote_code=trust_remote_code
        )
        AutoHfQuantizer.from_config(quantization, pre_quantized=False).preprocess_model(
            model, device_map=None
        )
    return {name for name, module in model.named_modules() if is_4bit(module)}
