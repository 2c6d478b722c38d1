"""A model of fake tensors (shapes without storage), as training would build it."""

import copy
import sys
from typing import Any, TypeGuard

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.integrations.bitsandbytes import replace_with_bnb_linear
from transformers.quantizers.base import HfQuantizer

from luthier.kernels.nf4 import is_4bit
from luthier.kernels.triton.switch import is_gpu
from luthier.models.adapters import attach_adapter
from luthier.models.load import quantised_as
from luthier.models.names import choose_trained
from luthier.recipe import MethodGroup

_BLOCK = 64  # weights that share a quantisation constant
_NESTED_BLOCK = 256  # constants that share one in turn, with double quantisation


def meta_model(
    config: PreTrainedConfig,
    method: MethodGroup,
    dtype: torch.dtype,
    trained: torch.dtype = torch.float32,
    tokens: int = 0,
    scores: bool = False,
) -> PreTrainedModel | PeftModel:
    """The model of ``config``, ready to train by ``method``, on the meta device.

    ``dtype`` is that of frozen weights, ``trained`` that of weights that train as a whole; the rows
    of ``tokens`` tokens train beside an adapter. With ``scores`` it is a sequence classifier.

    Attached by the same code that trains, so that adapters and frozen parts are those of a real run.
    """
    whole = method.name == "full"
    with torch.device("meta"):
        kind: Any = AutoModelForCausalLM
        config = copy.deepcopy(config)  # a model changes its own
        if scores:
            kind = AutoModelForSequenceClassification
            config.num_labels = 1
        model: PreTrainedModel = kind.from_config(config, dtype=trained if whole else dtype)
        quantised = None if whole else quantised_as(config, method, dtype)
        if quantised is not None:
            _quantise(model, quantised, dtype, scores)
        if whole:
            choose_trained(model, method)
            return model.train()
        ready = attach_adapter(model, method, on_meta=True, tokens=range(tokens), scores=scores)
    return ready.train()


def _quantise(
    model: PreTrainedModel, config: BitsAndBytesConfig, dtype: torch.dtype, scores: bool
) -> None:
    """Replace the layers that Transformers replaces when it loads ``model`` by ``config``."""
    kept = ["score"] if scores else config.llm_int8_skip_modules
    in_float32 = list(model._keep_in_fp32_modules or ())
    skipped = HfQuantizer.get_modules_to_not_convert(model, kept, in_float32)
    replace_with_bnb_linear(model, skipped, config)
    for module in model.modules():
        if (is_4bit(module) or _is_8bit(module)) and module.bias is not None:
            module.bias.data = module.bias.data.to(dtype)
    # By these PEFT knows them.
    setattr(model, f"is_loaded_in_{4 if config.load_in_4bit else 8}bit", True)


def give_storages(model: nn.Module) -> None:
    """Replace meta tensors by fake ones; call inside a ``FakeTensorMode``. Tied weights stay tied."""
    shared: dict[int, nn.Parameter] = {}
    adapters = isinstance(model, PeftModel)
    for module in model.modules():
        if is_4bit(module):
            module.support_avx512bf16_for_cpu = False  # as in models/load.py
        for name, parameter in list(module._parameters.items()):
            if parameter is None:
                continue
            if id(parameter) not in shared:
                if is_4bit(module) and name == "weight":
                    new = _packed(parameter, module)
                elif _is_8bit(module) and name == "weight":
                    new = _in_8_bits(module)
                else:
                    new = _like(parameter, adapters)
                shared[id(parameter)] = new
            module._parameters[name] = shared[id(parameter)]
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)


def _like(parameter: Tensor, adapters: bool) -> nn.Parameter:
    # Adapters are float32 whatever the weights beside them are.
    dtype = torch.float32 if adapters and parameter.requires_grad else parameter.dtype
    return nn.Parameter(torch.empty(parameter.shape, dtype=dtype), parameter.requires_grad)


def _packed(parameter: Tensor, module: Any) -> nn.Parameter:
    """Two weights per byte, with the constants of their blocks (Dettmers et al. 2023, section 3)."""
    from bitsandbytes.functional import QuantState

    out_features, in_features = module.out_features, module.in_features
    count = out_features * in_features
    blocks = -(-count // _BLOCK)
    packed = nn.Parameter(torch.empty((count + 1) // 2, 1, dtype=torch.uint8), False)
    double = parameter.compress_statistics  # type: ignore[attr-defined]
    nested = QuantState(
        absmax=torch.empty(-(-blocks // _NESTED_BLOCK)),
        code=torch.empty(256),
        blocksize=_NESTED_BLOCK,
        dtype=torch.float32,
    )
    state = QuantState(
        absmax=torch.empty(blocks, dtype=torch.uint8 if double else torch.float32),
        shape=torch.Size((out_features, in_features)),
        code=torch.empty(16),
        blocksize=_BLOCK,
        quant_type=parameter.quant_type,  # type: ignore[attr-defined]
        dtype=module.compute_dtype,
        offset=torch.empty(()) if double else None,
        state2=nested if double else None,
    )
    packed.quant_state = state  # type: ignore[attr-defined]
    module.quant_state = state
    return packed


def _is_8bit(module: nn.Module) -> TypeGuard[Any]:
    library = sys.modules.get("bitsandbytes.nn")
    return library is not None and isinstance(module, library.Linear8bitLt)


def _in_8_bits(module: Any) -> nn.Parameter:
    """A byte a weight and a float32 a row of them (Dettmers et al. 2022, "LLM.int8()", section 2.1).

    How many columns of an input are outliers, which stay in 16 bits, the numbers alone can say: here none.
    """
    shape = module.out_features, module.in_features
    weight = nn.Parameter(torch.empty(shape, dtype=torch.int8), False)
    weight.CB = weight.SCB = None  # type: ignore[attr-defined]
    state = module.state
    state.CB, state.SCB, state.threshold = weight.data, torch.empty(shape[0]), 0.0
    if is_gpu(weight.device):  # a processor's product is another, and expands the weight
        from bitsandbytes.autograd._functions import MatMul8bitLt

        module.forward = lambda x: MatMul8bitLt.apply(x, module.weight, None, module.bias, state)
    return weight


def storages(model: nn.Module) -> list[Tensor]:
    """Every tensor that a loaded model holds, quantisation constants included."""
    tensors: list[Tensor] = [*model.parameters(), *model.buffers()]
    for module in model.modules():
        state = getattr(module, "quant_state", None)
        for each in (state, getattr(state, "state2", None)):
            tensors += [v for v in vars(each).values() if isinstance(v, Tensor)] if each else []
        if _is_8bit(module):
            kept = module.weight if module.state.SCB is None else module.state
            tensors.append(kept.SCB)  # which move at the first use
    return tensors
