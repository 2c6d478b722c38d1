"""Models with an adapter that says something, for tests of what computes with it."""

from typing import Any

import torch
from families import make_model
from peft import PeftModel
from torch import nn

from luthier.models.adapters import attach_adapter
from luthier.recipe import MethodGroup


def fill_up(model: nn.Module) -> None:
    """Let no B be nought, so that adapters say something and A has a gradient."""
    torch.manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.05)


def adapted(family: str, dtype: torch.dtype = torch.float32, **changes: Any) -> PeftModel:
    """An adapted model whose B is not nought, so that A has a gradient."""
    chosen = {"lora_dropout": 0.0, "lora_r": 4, "lora_alpha": 8} | changes
    model = attach_adapter(make_model(family, 96).to(dtype), MethodGroup(**chosen))
    fill_up(model)
    return model.eval()
