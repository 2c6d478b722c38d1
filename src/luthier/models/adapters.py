"""Attach a LoRA adapter to a model, through PEFT."""

from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PreTrainedModel

from luthier.errors import UserError
from luthier.recipe import MethodGroup


def attach_adapter(model: PreTrainedModel, method: MethodGroup, on_meta: bool = False) -> PeftModel:
    """Add a new adapter (A random, B zero: the model's outputs do not change yet).

    ``on_meta`` leaves it without memory, for planning.

    h = W x + (lora_alpha / lora_r) B A dropout(x), W frozen (Hu et al. 2021). The adapter is kept
    in float32 whatever the dtype of W, so that small updates are not rounded away.

    Raises:
        UserError: ``target_modules`` names no layer of this model, or it has experts, whose
            adapters have no dropout, and ``lora_dropout`` is not 0.
    """
    config = LoraConfig(
        r=method.lora_r,
        lora_alpha=method.lora_alpha,
        lora_dropout=method.lora_dropout,
        target_modules=method.target_modules,
        use_rslora=method.use_rslora,
        use_dora=method.use_dora,
        task_type="CAUSAL_LM",
    )
    leaves = sorted(
        {
            name.rpartition(".")[2]
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear)
        }
    )
    try:
        return get_peft_model(model, config, autocast_adapter_dtype=True, low_cpu_mem_usage=on_meta)
    except ValueError as error:
        if "lora_dropout" in str(error):  # PEFT adapts a stack of experts as one parameter
            raise UserError(
                "adapters on this model's experts do not support dropout: set method.lora_dropout=0"
            ) from error
        raise UserError(
            f"method.target_modules {method.target_modules!r} does not fit this model: {error}; "
            f"its linear layers are {', '.join(leaves)}"
        ) from error


def load_adapter(model: PreTrainedModel, folder: Path, name: str = "default") -> PeftModel:
    """The model with the saved adapter of ``folder`` on it as ``name``, for inference.

    Raises:
        UserError: the folder has no adapter, or one for another model.
    """
    if not (folder / "adapter_config.json").is_file():
        raise UserError(f"{folder} has no adapter; has the run finished?")
    if not (
        folder / "adapter_model.safetensors"
    ).is_file():  # PEFT would read a pickle in its place
        raise UserError(f"{folder} has no adapter_model.safetensors, and pickle files are not read")
    try:
        return PeftModel.from_pretrained(model, str(folder), adapter_name=name)
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(f"the adapter in {folder} does not fit the model: {error}") from error


def scale_adapter(model: PeftModel, scale: float) -> None:
    """Multiply what the adapter adds to each layer by ``scale``."""
    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.scaling = {name: value * scale for name, value in module.scaling.items()}


def add_adapter(model: PeftModel, folder: Path, name: str) -> None:
    """Put the saved adapter of ``folder`` beside those that ``model`` has, for inference.

    Raises:
        UserError: as ``load_adapter``; the model is then as it was.
    """
    if not (folder / "adapter_config.json").is_file():
        raise UserError(f"{folder} has no adapter; has the run finished?")
    try:
        model.load_adapter(str(folder), adapter_name=name)
    except (RuntimeError, ValueError, OSError) as error:
        if name in model.peft_config:
            model.delete_adapter(name)
        raise UserError(f"the adapter in {folder} does not fit the model: {error}") from error


def inner(model: nn.Module) -> Any:
    """The Transformers model inside its wrappers (DistributedDataParallel, PEFT)."""
    while isinstance(wrapped := getattr(model, "module", None), nn.Module):
        model = wrapped
    return model.get_base_model() if isinstance(model, PeftModel) else model


def trainable_parameters(model: nn.Module) -> tuple[int, int]:
    """How many numbers train, and how many there are in all (4-bit weights counted unpacked)."""
    if isinstance(model, PeftModel):
        trainable, total = model.get_nb_trainable_parameters()
        return int(trainable), int(total)
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, grad in sizes if grad), sum(n for n, _ in sizes)
