"""A LoRA adapter as a GGUF file of its own, which llama.cpp puts onto its base (`--lora`)."""

from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter
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
        UserError: it is a full run, or llama.cpp has no such adapter (DoRA, embeddings).
    """
    recipe = run.recipe()
    if recipe.method.name == "full":
        raise UserError(f"{run.root} is a full fine-tuning run and has no adapter; use --to gguf")
    if recipe.method.use_dora:
        raise UserError("llama.cpp does not support DoRA; export the merged model with --to gguf")
    _, config = base_of(run, recipe)
    made = architecture(config)
    model = adapted(config, {"default": run.adapter_path}, recipe.model.trust_remote_code)
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
    for layer, lora in layers.items():
        if "default" not in lora.lora_A or layer == "lm_head":
            raise UserError(
                f"llama.cpp does not support an adapter on {layer}; use --to gguf, which merges it"
            )
        a, b = lora.lora_A["default"].weight.data, lora.lora_B["default"].weight.data
        rank = a.shape[0]
        target = made.tensor_name(f"{layer}.weight")
        scaled = b.float() * (lora.scaling["default"] * rank / alpha)
        tensors[f"{target}.lora_a"] = a.float()
        tensors[f"{target}.lora_b"] = made.lay_out(f"{layer}.weight", scaled)
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
