"""A LoRA adapter as a GGUF file of its own, which llama.cpp puts onto its base (`--lora`)."""

from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import ParamWrapper
from torch import Tensor

from luthier.errors import UserError
from luthier.export.gguf_arch import architecture
from luthier.export.skeleton import adapted, lora_layers
from luthier.export.tuned import base_of
from luthier.models.adapters import trained_beside
from luthier.run import Run


def write_adapter_gguf(run: Run, file: Path, name: str) -> int:
    """Write the adapter of ``run`` in float32; the number of layers it changes.

    llama.cpp computes W x + (alpha / r) B A x. Each layer's own scale (rank-stabilised or not) goes
    into its B, since the file has one alpha for all.

    Raises:
        UserError: it is a full run, or llama.cpp has no such adapter (DoRA, embeddings,
            scaled positions).
    """
    recipe = run.recipe()
    if recipe.method.name == "full":
        raise UserError(f"{run.root} is a full fine-tuning run and has no adapter; use --to gguf")
    if recipe.model.rope_scaling is not None:
        raise UserError(
            f"{run.root} scaled the base's rotary positions (model.rope_scaling), which an adapter cannot "
            "hold; use --to gguf, which merges it and keeps them"
        )
    _, config = base_of(run, recipe)
    made = architecture(config)
    model = adapted(config, {"default": run.adapter_path}, recipe.model.trust_remote_code)
    if model.peft_config["default"].use_dora:
        raise UserError("llama.cpp does not support DoRA; export the merged model with --to gguf")
    beside = trained_beside(model.peft_config["default"])
    if beside is not None:
        raise UserError(
            f"{run.root} trained {beside} beside the adapter, which llama.cpp's adapters cannot hold; "
            "use --to gguf, which merges it"
        )
    layers = lora_layers(model)
    writer = GGUFWriter(None, made.name)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_name(name)
    alpha = float(recipe.method.lora_r)
    writer.add_float32("adapter.lora.alpha", alpha)
    tensors: dict[str, Tensor] = {}
    for parameter, lora in layers.items():
        if "default" not in lora.lora_A or parameter == "lm_head.weight":
            raise UserError(
                f"llama.cpp does not support an adapter on {parameter.removesuffix('.weight')}; use "
                "--to gguf, which merges it"
            )
        a, b = _factors(lora)
        scaled = b * (lora.scaling["default"] * a.shape[-2] / alpha)
        for target, value in made.lay_out(parameter, scaled).items():
            tensors[f"{target}.lora_a"] = a
            tensors[f"{target}.lora_b"] = value
    for target, tensor in tensors.items():
        writer.add_tensor_info(
            target,
            tuple(tensor.shape),
            np.dtype(np.float32),
            tensor.numel() * 4,
            GGMLQuantizationType.F32,
        )
    try:
        writer.write_header_to_file(file)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in tensors.values():
            writer.write_tensor_data(tensor.contiguous().numpy())
        writer.close()
    except OSError as error:
        raise UserError(f"cannot write {file}: {error.strerror or error}") from error
    return len(layers)


def _factors(lora: LoraLayer) -> tuple[Tensor, Tensor]:
    """A (rank, inputs) and B (outputs, rank); of experts, one of each for every expert."""
    a = lora.lora_A["default"].weight.data.float()
    b = lora.lora_B["default"].weight.data.float()
    if not isinstance(lora, ParamWrapper) or lora.num_experts == 1:
        return a, b
    # As PEFT keeps them: A's rows by expert and rank, B's columns by rank and expert.
    experts = lora.num_experts
    return (
        a.reshape(experts, -1, a.shape[1]).contiguous(),
        b.reshape(b.shape[0], -1, experts).permute(2, 0, 1).contiguous(),
    )
