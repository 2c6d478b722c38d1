"""First weights of an adapter that need more than its layers: EVA's the data, LoftQ's the files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, initialize_lora_eva_weights
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel

from luthier.data.batches import IGNORED
from luthier.data.tokens import TokenRow
from luthier.errors import UserError
from luthier.events import OnEvent, during
from luthier.kernels.nf4 import is_4bit, plain_weight
from luthier.recipe import MethodGroup


def begin_adapter(
    model: PreTrainedModel | PeftModel,
    method: MethodGroup,
    folder: Path,
    rows: Sequence[TokenRow],
    on_event: OnEvent,
) -> None:
    """Give a new adapter what ``method.init_lora_weights`` asks for beyond its layers.

    Args:
        folder: of the base's weights.
        rows: to train on.

    Raises:
        UserError: there are too few rows for EVA, or the folder lacks a weight.
    """
    if not isinstance(model, PeftModel):
        return
    if method.init_lora_weights == "eva":
        with during("looking for the directions of the training data (EVA)", on_event):
            _eva(model, rows)
    if method.init_lora_weights == "loftq":
        with during("fitting the adapter to the error of the 4 bits (LoftQ)", on_event):
            _loftq(model, folder)


def _eva(model: PeftModel, rows: Sequence[TokenRow]) -> None:
    """A of each layer: the main directions of its inputs (Paischer et al. 2024), by PEFT."""
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    config = model.peft_config["default"].eva_config
    rank = max(rank for layer in layers for rank in layer.r.values())
    narrowest = min(layer.in_features for layer in layers)
    if rank > narrowest:
        raise UserError(
            f"method.init_lora_weights eva: rank {rank} is more than the {narrowest} inputs of a layer; "
            f"set method.lora_r={narrowest} or less"
        )
    # A layer may get up to so many times its rank, but has no more directions than inputs.
    config.rho = min(config.rho, narrowest / rank)
    # PEFT takes no batch with fewer tokens than it looks for directions, and waits for one.
    most = 2 * round(config.rho * rank)
    batches = _batches(rows, most, next(model.parameters()).device)
    if not batches:
        raise UserError(
            f"method.init_lora_weights eva needs {most:,} trainable tokens of training data for this "
            "rank, and there are fewer; lower method.lora_r, or set method.init_lora_weights=true"
        )
    initialize_lora_eva_weights(model, batches, show_progress_bar=False)


def _batches(rows: Sequence[TokenRow], least: int, device: torch.device) -> list[dict[str, Tensor]]:
    """Padded batches, each with ``least`` trainable tokens or more."""
    made, group, count = list[dict[str, Tensor]](), list[TokenRow](), 0
    for row in rows:
        group.append(row)
        count += sum(row.supervised)
        if count >= least:
            made.append(_padded(group, device))
            group, count = [], 0
    return made


def _padded(rows: Sequence[TokenRow], device: torch.device) -> dict[str, Tensor]:
    longest = max(map(len, rows))

    def filled(values: list[list[int]], filler: int) -> Tensor:
        full = [each + [filler] * (longest - len(each)) for each in values]
        return torch.tensor(full, device=device)

    return {
        "input_ids": filled([row.input_ids for row in rows], 0),
        "attention_mask": filled([[1] * len(row) for row in rows], 0),
        "labels": filled(
            [
                [
                    token if counts else IGNORED
                    for token, counts in zip(r.input_ids, r.supervised, strict=True)
                ]
                for r in rows
            ],
            IGNORED,
        ),
    }


@torch.no_grad()
def _loftq(model: PeftModel, folder: Path) -> None:
    """s B A = the largest part of W - W_4bit in r dimensions (Li et al. 2023, one step)."""
    files = _files_of(folder)
    prefix = f"{model.get_base_model().base_model_prefix}."
    for name, layer in model.get_base_model().named_modules():
        if not isinstance(layer, LoraLayer) or not is_4bit(layer.get_base_layer()):
            continue
        stored = f"{name}.weight"
        found = next((n for n in (stored, stored.removeprefix(prefix)) if n in files), None)
        if found is None:
            raise UserError(
                f"{folder} has no safetensors file with {stored}, which method.init_lora_weights "
                "loftq compares with its 4 bits; set method.init_lora_weights=true"
            )
        with safe_open(str(files[found]), "pt") as file:
            weight = file.get_tensor(found).float()
        kept: Any = plain_weight(layer.get_base_layer(), torch.float32)
        left, sizes, right = torch.linalg.svd(weight.to(kept.device) - kept, full_matrices=False)
        rank, scale = layer.r["default"], layer.scaling["default"]
        roots = (sizes[:rank] / scale).sqrt()
        layer.lora_A["default"].weight.data = (roots[:, None] * right[:rank]).contiguous()
        layer.lora_B["default"].weight.data = (left[:, :rank] * roots).contiguous()


def _files_of(folder: Path) -> dict[str, Path]:
    """Tensor → the safetensors file it is in."""
    found: dict[str, Path] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(str(path), "pt") as file:
            found.update(dict.fromkeys(file.keys(), path))
    return found
