"""The weights of a finished run, tensor by tensor, its adapter folded in."""

from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedConfig

from luthier.errors import UserError
from luthier.export.base import BaseWeights, config_of
from luthier.export.options import Onto
from luthier.export.skeleton import lora_layers, skeleton
from luthier.models.adapters import load_adapter
from luthier.models.load import load_tokenizer, quantization
from luthier.models.source import resolve
from luthier.models.tuned import run_dtype
from luthier.recipe import Recipe
from luthier.run import Run


class TunedWeights:
    """W + scale · B A for each adapted layer and W elsewhere, in float32, one tensor in memory.

    Attributes:
        config: as it has to be written beside these weights.
        source: folder of the frozen weights.
        tokenizer: with the chat template that the run trained with.
        onto: what the frozen weights are (``base.py``).
        layers: how many layers an adapter is folded into.
        untied: the output layer has weights of its own here, since an adapter changed one end alone.
        parameters: names of all tensors, as the model calls them.

    Raises:
        UserError: the weights cannot be read, or the adapter does not fit them.
    """

    def __init__(self, run: Run, adapter: Path | None = None, onto: Onto = "trained") -> None:
        recipe = run.recipe()
        trust = recipe.model.trust_remote_code
        full = recipe.method.name == "full"
        self.source, self.config = base_of(run, recipe)
        self.tokenizer = load_tokenizer(run.weights_path(recipe), trust)
        self.onto: Onto = "original" if full else onto
        compute = run_dtype(run)
        model = skeleton(self.config, trust)
        quantised = quantization(recipe.method, compute)
        self._base = BaseWeights(self.source, model, self.onto, compute, quantised, trust)
        self._adapted: dict[str, LoraLayer] = {}
        if not full:
            self._adapted = lora_layers(load_adapter(model, adapter or run.adapter_path))
        self.layers = len(self._adapted)
        self.untied = self._needs_own_head()
        if self.untied:
            self.config.tie_word_embeddings = False
            self.config.get_text_config().tie_word_embeddings = False
        self.parameters = [
            name for name in self._base.names if self.untied or name != self._base.tied_head
        ]

    def shape(self, name: str) -> tuple[int, ...]:
        return self._base.weights.shapes[self._base.names[name]]

    def stored_dtype(self, name: str) -> torch.dtype:
        return self._base.weights.dtypes[self._base.names[name]]

    def is_float(self, name: str) -> bool:
        return self.stored_dtype(name).is_floating_point

    def __call__(self, name: str) -> Tensor:
        """The value of a parameter; float32 where it is a real number."""
        value = self._base(name)
        layer, _, leaf = name.rpartition(".")
        if layer in self._adapted and leaf == "weight":
            return _fold(layer, self._adapted[layer], value)
        return value

    def _needs_own_head(self) -> bool:
        if self._base.tied_head is None:
            return False
        ends = {name.removesuffix(".weight") for name in self._base.ends}
        return bool(ends & set(self._adapted))


def base_of(run: Run, recipe: Recipe) -> tuple[Path, PreTrainedConfig]:
    """The folder that holds the frozen weights of a run (of a full one, its own), and its config."""
    if recipe.method.name == "full":
        folder = run.model_path
    else:
        folder = resolve(recipe.model.source, recipe.model.revision).folder
    return folder, config_of(folder, recipe.model.trust_remote_code)


def _fold(name: str, layer: LoraLayer, weight: Tensor) -> Tensor:
    """The layer's weight with its adapter in it, by PEFT's own ``merge``."""
    inner: Any = layer.get_base_layer()
    empty = inner.weight
    inner.weight = nn.Parameter(weight, requires_grad=False)
    try:
        layer.merge(safe_merge=True)
    except ValueError as error:
        raise UserError(f"the adapter of {name} does not merge: {error}") from error
    finally:
        folded: Tensor = inner.weight.data
        inner.weight = empty
        layer.merged_adapters.clear()  # so that the same tensor can be asked for again
    return folded
