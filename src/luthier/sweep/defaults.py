"""What is varied where nobody says what: by method, around the recipe's own values."""

from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from luthier.models.load import load_config
from luthier.models.source import ResolvedModel
from luthier.recipe import Recipe
from luthier.recipe.keys import yaml_value
from luthier.records.sweep import Choice, Dimension, Span
from luthier.sweep.space import ALPHA_RATIO, own_value

# The rate matters most. Either way of the recipe's own, which is the published one of its method unless
# it was set (recipe/groups/method.py): the published ones of LoRA and of full fine-tuning are 15 times apart.
_RATE_FACTOR = 8.0
_LONGER = 5 / 3  # the most epochs, over the recipe's own
_WARMUP = 0.2
_RANKS = (4, 64)
_RATIOS = (1, 2, 4)  # lora_alpha / lora_r
_DECAYS = (0.0, 0.01, 0.1)


def default_space(recipe: Recipe, resolved: ResolvedModel) -> list[Dimension]:
    """Rate, epochs and warm-up; for adapters rank, alpha ratio and targets; for full the decay.

    Whatever the recipe has for a key is among its values. What the recipe settles in another way is
    not varied: epochs where ``train.max_steps`` is set, targets where they are named.
    """
    rate = recipe.train.learning_rate
    assert rate is not None  # the recipe filled in the method's
    space: list[Dimension] = [
        Span(
            key="train.learning_rate",
            low=float(f"{rate / _RATE_FACTOR:.3g}"),
            high=float(f"{rate * _RATE_FACTOR:.3g}"),
            log=True,
        )
    ]
    if recipe.method.name == "full":
        space.append(_among("train.weight_decay", _DECAYS, recipe))
    else:
        own = recipe.method.lora_r
        low, high = min(_RANKS[0], own), max(_RANKS[1], own)
        space.append(Span(key="method.lora_r", low=low, high=high, log=True, whole=True))
        space.append(_among(ALPHA_RATIO, _RATIOS, recipe))
        attention = attention_layers(recipe, resolved)
        if recipe.method.target_modules == "all-linear" and attention:
            space.append(Choice(key="method.target_modules", choices=["all-linear", attention]))
    if recipe.train.max_steps <= 0:
        most = max(2, round(recipe.train.num_train_epochs * _LONGER))
        least = min(1.0, recipe.train.num_train_epochs)
        epochs = [least, *range(int(least) + 1, most + 1)]
        space.append(_among("train.num_train_epochs", epochs, recipe))
    warmup = recipe.train.warmup_ratio
    if recipe.train.warmup_steps is None and recipe.train.lr_scheduler_type != "constant":
        longest = max(_WARMUP, warmup or 0.0)
        space.append(Span(key="train.warmup_ratio", low=0.0, high=longest))
    return space


def _among(key: str, values: Any, recipe: Recipe) -> Choice:
    """A choice of ``values`` and the recipe's own."""
    own = own_value(recipe, key)
    found = {yaml_value(_plain(value)): _plain(value) for value in (*values, own)}
    return Choice(key=key, choices=sorted(found.values()))


def _plain(value: float) -> float:
    """3 for 3.0, so that both are one value."""
    return int(value) if value == int(value) else value


def attention_layers(recipe: Recipe, resolved: ResolvedModel) -> list[str]:
    """What the linear layers of the model's attention are called; none where they cannot be told."""
    config = load_config(resolved.folder, recipe.model.trust_remote_code, recipe.model.rope_scaling)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            config, trust_remote_code=recipe.model.trust_remote_code
        )
    linear = [n for n, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    inside = {n.rpartition(".")[2] for n in linear if "attn" in n or "attention" in n}
    outside = {n.rpartition(".")[2] for n in linear if "attn" not in n and "attention" not in n}
    # GPT-2 calls a layer of its attention as one of its MLP: the name alone does not tell them apart.
    return sorted(inside) if not inside & outside else []
