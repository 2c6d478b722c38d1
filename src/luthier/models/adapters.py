"""Attach a LoRA adapter to a model, save and load it, through PEFT."""

import copy
import json
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import EvaConfig, LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.utils.other import ModulesToSaveWrapper
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from luthier.errors import UserError
from luthier.models.names import (
    check_method,
    check_patterns,
    exact_modules,
    is_called,
    linear_leaves,
    refuse_missing_layers,
)
from luthier.models.residual import Start, doubled, joined
from luthier.recipe import MethodGroup


def attach_adapter(
    model: PreTrainedModel,
    method: MethodGroup,
    on_meta: bool = False,
    *,
    base: str | None = None,
    revision: str | None = None,
    tokens: Sequence[int] = (),
    scores: bool = False,
) -> PeftModel:
    """Add a new adapter; but for PiSSA and OLoRA the model's outputs do not change yet.

    h = W x + (lora_alpha / lora_r) B A dropout(x), W frozen (Hu et al. 2021). All that trains is
    kept in float32 whatever the dtype of W, so that small updates are not rounded away.

    Args:
        on_meta: leave it without memory, for planning.
        base: what the saved adapter names as its base, with its ``revision``.
        tokens: ids whose rows of the embedding (and output layer) train.
        scores: the model is a sequence classifier, whose layer for the label trains completely.

    Raises:
        UserError: ``target_modules`` or another key names what this model has not, or it has
            experts, whose adapters have no dropout, and ``lora_dropout`` is not 0.
    """
    check_method(method, model)
    names, leaves = [name for name, _ in model.named_modules()], linear_leaves(model)
    targets = method.target_modules
    if targets == "all-linear" and method.layers_to_transform is not None:
        targets = leaves  # PEFT takes numbers of layers with a list alone
    config = LoraConfig(
        r=method.lora_r,
        lora_alpha=method.lora_alpha,
        lora_dropout=method.lora_dropout,
        target_modules=targets,
        target_parameters=method.target_parameters or None,
        layers_to_transform=method.layers_to_transform,
        rank_pattern=dict(method.rank_pattern),
        alpha_pattern=dict(method.alpha_pattern),
        modules_to_save=method.modules_to_save or None,
        bias=method.bias,
        init_lora_weights=_first_weights(method, on_meta),
        eva_config=EvaConfig() if method.init_lora_weights == "eva" and not on_meta else None,
        use_rslora=method.use_rslora,
        use_dora=method.use_dora,
        trainable_token_indices=_rows_of(model, tokens, method),
        task_type="SEQ_CLS" if scores else "CAUSAL_LM",
    )
    exact_modules(config, model)
    wanted = [] if isinstance(targets, str) else targets
    try:
        with warnings.catch_warnings():  # about ends that come apart, which is done and told
            warnings.simplefilter("ignore", UserWarning)
            adapted = get_peft_model(
                model, config, autocast_adapter_dtype=True, low_cpu_mem_usage=on_meta
            )
    except (ValueError, TypeError) as error:
        if "lora_dropout" in str(error):  # PEFT adapts a stack of experts as one parameter
            raise UserError(
                "adapters on this model's experts do not support dropout: set method.lora_dropout=0"
            ) from error
        refuse_missing_layers(wanted, names, leaves)
        raise UserError(
            f"method.target_modules {method.target_modules!r} does not fit this model: {error}; "
            f"its linear layers are {', '.join(leaves)}"
        ) from error
    # Names that PEFT knows from before a model's experts became one parameter are gone from here.
    left = config.target_modules or ()
    refuse_missing_layers([name for name in wanted if name in left], names, leaves)
    check_patterns(method, adapted)
    _check_biases(adapted, method)
    _check_start(adapted, method)
    config.base_model_name_or_path, config.revision = base, revision
    if not on_meta:
        _train_in_float32(adapted)
    return adapted


def begun(method: MethodGroup, checkpoint: Path) -> MethodGroup:
    """``method`` for an adapter that goes on from ``checkpoint``: nothing is computed anew.

    EVA gave each layer a rank of its own, which the checkpoint says.
    """
    changed: dict[str, Any] = {"init_lora_weights": True}
    if method.init_lora_weights == "eva":
        saved = LoraConfig.from_pretrained(str(checkpoint))
        changed["target_modules"] = sorted(saved.target_modules)
        changed["rank_pattern"] = saved.rank_pattern
        changed["alpha_pattern"] = saved.alpha_pattern
    return method.model_copy(update=changed)


def _first_weights(method: MethodGroup, on_meta: bool) -> Any:
    # LoftQ's are put in afterwards (loftq.py); nothing is computed where there are no weights.
    return True if on_meta or method.init_lora_weights == "loftq" else method.init_lora_weights


def _rows_of(
    model: PreTrainedModel, tokens: Sequence[int], method: MethodGroup
) -> dict[str, list[int]] | None:
    """Which rows of the embedding and of the output layer train alone; tied ones are one to PEFT."""
    ends = {id(end) for end in (model.get_input_embeddings(), model.get_output_embeddings())}
    names = [name for name, module in model.named_modules() if id(module) in ends]
    alone = [n for n in names if not any(is_called(n, whole) for whole in method.modules_to_save)]
    return {name: list(tokens) for name in alone} if tokens and alone else None


def _check_start(model: PeftModel, method: MethodGroup) -> None:
    if method.init_lora_weights in (True, "gaussian"):
        return
    for name, layer in model.get_base_model().named_modules():
        if isinstance(layer, LoraLayer) and layer.lora_embedding_A:
            raise UserError(
                f"method.init_lora_weights {method.init_lora_weights} is for linear layers, and {name} "
                "is an embedding; take it out of method.target_modules"
            )
        if method.changes_base and isinstance(layer, LoraLayer):
            least = min(layer.in_features, layer.out_features)
            if max(layer.r.values()) > least:
                raise UserError(
                    f"method.init_lora_weights {method.init_lora_weights} takes apart {name}, whose rank "
                    f"is {least} at most; set method.lora_r={least} or less, or another rank for it in "
                    "method.rank_pattern"
                )


def _check_biases(model: PeftModel, method: MethodGroup) -> None:
    if method.bias == "none":
        return
    trained = [p for n, p in model.named_parameters() if p.requires_grad and n.endswith("bias")]
    if not trained:
        whose = "this model" if method.bias == "all" else "no adapted layer of this model"
        raise UserError(
            f"method.bias {method.bias}: {whose} has {'no' if method.bias == 'all' else 'a'} bias to "
            "train; set method.bias=none"
        )
    if any(bias.dtype != torch.float32 for bias in trained):
        raise UserError(
            "method.bias trains biases in the number format of the base, in which small updates are "
            "rounded away; set model.dtype=float32, or method.bias=none"
        )


def _train_in_float32(model: PeftModel) -> None:
    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper):
            for whole in module.modules_to_save.values():
                _compute_in_float32(whole)
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.is_floating_point():
            parameter.data = parameter.data.float()


def _compute_in_float32(module: nn.Module) -> None:
    """Give ``module`` float32 weights that the layers around it, in another dtype, do not notice."""
    outside = next(module.parameters()).dtype
    if outside == torch.float32:
        return
    module.float()
    module.register_forward_pre_hook(
        lambda _module, inputs: tuple(_cast(each, torch.float32) for each in inputs)
    )
    module.register_forward_hook(lambda _module, _inputs, output: _cast(output, outside))


def _cast(value: Any, dtype: torch.dtype) -> Any:
    floating = isinstance(value, torch.Tensor) and value.is_floating_point()
    return value.to(dtype) if floating else value


def save_adapter(
    model: PeftModel,
    folder: Path,
    start: Start | None = None,
    trained: dict[str, Tensor] | None = None,
) -> None:
    """Write the adapter and all that trained beside it in PEFT's format.

    Args:
        start: what the adapter began with where that was taken out of the base (``residual.py``).
        trained: its weights by the names they have in ``model``, where they are not in it as they are.
    """
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    # Asked of PEFT to decide by itself, it looks for the base on the hub.
    whole = any(isinstance(end, LoraLayer) for end in ends)
    weights = get_peft_model_state_dict(model, trained, save_embedding_layers=whole)
    config = copy.deepcopy(model.peft_config[model.active_adapter])
    if start is not None:
        weights, config = joined(weights, start), doubled(config)
    seen: set[int] = set()
    for name, tensor in weights.items():
        if tensor.data_ptr() in seen:  # the format has no shared tensors
            tensor = tensor.clone()
        seen.add(tensor.data_ptr())
        weights[name] = tensor.contiguous()
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config.inference_mode = True
    config.save_pretrained(str(folder))


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
        fit_embedding(model, _rows_needed(folder))
        with warnings.catch_warnings():  # what the file lacks would stay random
            warnings.filterwarnings("error", "Found missing adapter keys")
            return PeftModel.from_pretrained(model, str(folder), adapter_name=name)
    except (
        RuntimeError,
        ValueError,
        OSError,
        KeyError,
        TypeError,
        SafetensorError,
        UserWarning,
    ) as error:
        raise UserError(f"the adapter in {folder} does not fit the model: {error}") from error


def changes_bases_biases(folder: Path) -> bool:
    """Whether biases of the base trained with the adapter: PEFT writes them over the base's."""
    config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    return config.get("bias", "none") != "none"


def trained_beside(config: LoraConfig) -> str | None:
    """What trained beside A and B, in words; None where nothing did."""
    if config.modules_to_save:
        return "whole modules"
    if config.trainable_token_indices:
        return "the embeddings of tokens"
    return "biases" if config.bias != "none" else None


def fit_embedding(model: PreTrainedModel, rows: int) -> None:
    """Give embedding and output layer ``rows`` rows if they have fewer, the new ones the mean.

    The mean of what is there is a likely word to no text (Hewitt 2021), and always the same.
    """
    ends: list[Any] = [model.get_input_embeddings(), model.get_output_embeddings()]
    before = int(ends[0].weight.shape[0])
    if rows <= before:
        return
    model.resize_token_embeddings(rows, mean_resizing=False)
    ends = [model.get_input_embeddings(), model.get_output_embeddings()]  # others now
    for end in ends:
        if end is None or end.weight.device.type == "meta":
            continue
        with torch.no_grad():
            end.weight[before:] = end.weight[:before].float().mean(0).to(end.weight.dtype)


def _rows_needed(folder: Path) -> int:
    """Rows that an embedding must have for the adapter of ``folder``; 0 where it does not say."""
    config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    tokens = config.get("trainable_token_indices") or []
    lists = tokens.values() if isinstance(tokens, dict) else [tokens]
    rows = [1 + max(each) for each in lists if each]
    with safe_open(str(folder / "adapter_model.safetensors"), "pt") as file:
        for name in file.keys():  # noqa: SIM118
            if re.search(r"\.(embed_tokens|wte|embed_in|lm_head)(\.base_layer)?\.weight$", name):
                rows.append(file.get_slice(name).get_shape()[0])
    return max(rows, default=0)


def adds_nothing(model: PeftModel) -> bool:
    """Whether the adapter leaves the model's outputs as they are, as most new ones do."""
    return not any(
        "lora_B" in name and bool(parameter.any()) for name, parameter in model.named_parameters()
    )


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
    if changes_bases_biases(folder):
        raise UserError(
            f"the adapter in {folder} was trained with biases of its base, which the adapters beside "
            "it share; load it alone"
        )
    rows = int(inner(model).get_input_embeddings().weight.shape[0])
    if _rows_needed(folder) > rows:
        raise UserError(
            f"the adapter in {folder} has tokens of its own, and the base that is loaded has {rows} "
            "rows in its embedding; load it alone"
        )
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
