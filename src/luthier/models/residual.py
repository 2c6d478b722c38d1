"""PiSSA and OLoRA: adapters that begin with a part of the base, taken out of it.

    W = W_res + s B0 A0        (Meng et al. 2024; Büyükakyüz 2024)

A0 and B0 are made of the largest singular values of W (PiSSA) or of its QR decomposition (OLoRA);
training begins at A = A0 and B = B0 beside W_res. What is saved is a plain adapter on the base as it
was published, of twice the rank, which every library loads:

    W_res + s B A = W + s [B, -B0] [A; A0]

Both halves are kept as they are, so a run that goes on from it finds its own A, B and W_res again,
bit by bit.
"""

import copy

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from torch import Tensor

Start = dict[str, Tensor]  # A0 and B0 by the names that PEFT saves them under
_A, _B = ".lora_A.weight", ".lora_B.weight"


def start_of(model: PeftModel) -> Start:
    """A copy of A and B of every layer: those of a new adapter are A0 and B0."""
    saved = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {name: t.detach().clone() for name, t in saved.items() if name.endswith((_A, _B))}


def joined(weights: dict[str, Tensor], start: Start) -> dict[str, Tensor]:
    """The weights of the plain adapter."""
    made = dict(weights)
    for name, first in start.items():
        if name.endswith(_A):
            made[name] = torch.cat([weights[name], first.to(weights[name])])
        else:
            made[name] = torch.cat([weights[name], -first.to(weights[name])], 1)
    return made


def parted(weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], Start]:
    """A and B, and A0 and B0, of the weights that ``joined`` made."""
    own, start = dict(weights), Start()
    for name, tensor in weights.items():
        if name.endswith(_A):
            own[name], start[name] = (half.clone() for half in tensor.chunk(2))
        elif name.endswith(_B):
            own[name], first = (half.clone() for half in tensor.chunk(2, 1))
            start[name] = -first
    return own, start


def doubled(config: LoraConfig) -> LoraConfig:
    """The config of the plain adapter: twice the ranks at the same scales."""
    plain = copy.deepcopy(config)
    # The scale is alpha / r, or alpha / sqrt(r) with rsLoRA.
    factor = 2**0.5 if config.use_rslora else 2
    plain.init_lora_weights = True
    plain.r = 2 * config.r
    plain.lora_alpha = config.lora_alpha * factor
    plain.rank_pattern = {name: 2 * rank for name, rank in (config.rank_pattern or {}).items()}
    plain.alpha_pattern = {n: a * factor for n, a in (config.alpha_pattern or {}).items()}
    return plain


@torch.no_grad()
def take_out(model: PeftModel, start: Start) -> None:
    """Make each W its W_res, as PEFT does for a new adapter."""
    name = model.active_adapter
    for stored, a in start.items():
        if not stored.endswith(_A):
            continue
        layer = model.get_submodule(stored.removesuffix(_A))
        weight = layer.get_base_layer().weight
        b = start[stored.removesuffix(_A) + _B].to(weight.device)
        whole = weight.data.to(torch.float32)
        whole = whole.T if layer.fan_in_fan_out else whole
        rest = whole - layer.scaling[name] * b @ a.to(weight.device)
        rest = rest.to(weight.dtype)
        weight.data = rest.T if layer.fan_in_fan_out else rest
