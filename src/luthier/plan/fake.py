"""A model of fake tensors (shapes without storage), as training would build it."""

import copy
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)

from luthier.kernels.nf4 import is_4bit
from luthier.models.adapters import attach_adapter
from luthier.models.load import double_quantised
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
        double = double_quantised(config)
        if double is None:
            double = method.bnb_4bit_use_double_quant if method.name == "qlora" else None
        if double is not None:
            _quantise(model, double, method.bnb_4bit_quant_type, dtype)
        if whole:
            choose_trained(model, method)
            return model.train()
        ready = attach_adapter(model, method, on_meta=True, tokens=range(tokens), scores=scores)
    return ready.train()


def _quantise(model: PreTrainedModel, double: bool, kind: str, dtype: torch.dtype) -> None:
    """Replace every linear layer but the head by a 4-bit one, as Transformers does when loading."""
    from bitsandbytes.nn import Linear4bit

    head = model.get_output_embeddings() or getattr(model, "score", None)
    layers = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    ]
    for name, module in layers:
        parent, _, leaf = name.rpartition(".")
        quantised = Linear4bit(
            module.in_features,
            module.out_features,
            bias=module.bias is not None,
            compute_dtype=dtype,
            compress_statistics=double,
            quant_type=kind,
        )
        quantised.requires_grad_(False)
        setattr(model.get_submodule(parent), leaf, quantised)


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
                four_bit = is_4bit(module) and name == "weight"
                shared[id(parameter)] = (
                    _packed(parameter, module) if four_bit else _like(parameter, adapters)
                )
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


def storages(model: nn.Module) -> list[Tensor]:
    """Every tensor that a loaded model holds, quantisation constants included."""
    tensors: list[Tensor] = [*model.parameters(), *model.buffers()]
    for module in model.modules():
        state = getattr(module, "quant_state", None)
        for each in (state, getattr(state, "state2", None)):
            tensors += [v for v in vars(each).values() if isinstance(v, Tensor)] if each else []
    return tensors
