"""The weights of a finished run, tensor by tensor, its adapter folded in."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from luthier.errors import UserError
from luthier.export.base import BaseWeights, config_of
from luthier.export.changes import Changes
from luthier.export.options import Onto
from luthier.export.skeleton import skeleton
from luthier.models.adapters import load_adapter
from luthier.models.load import load_tokenizer, quantization
from luthier.models.source import resolve
from luthier.models.tuned import run_dtype
from luthier.recipe import Recipe
from luthier.run import Run


class TunedWeights:
    """W + scale · B A for each adapted layer, what was trained whole as it was trained, and W elsewhere.

    In float32, one tensor in memory.

    Args:
        adapter: instead of the run's own.
        without_adapter: the base alone.

    Attributes:
        config: as it has to be written beside these weights.
        source: folder of the frozen weights.
        tokenizer: with the chat template that the run trained with.
        onto: what the frozen weights are (``base.py``).
        layers: how many layers an adapter changes.
        untied: the output layer has weights of its own here, since an adapter changed one end alone.
        units: names of all parameters, as the model calls them, in the groups in which they are
            written; most are alone.

    Raises:
        UserError: the weights cannot be read, or the adapter does not fit them.
    """

    def __init__(
        self,
        run: Run,
        adapter: Path | None = None,
        onto: Onto = "trained",
        *,
        without_adapter: bool = False,
    ) -> None:
        recipe = run.recipe()
        if recipe.objective.scores:
            raise UserError(
                f"{run.root} is a reward model: it is written as a sequence classifier of Transformers "
                "alone, by `luthier merge` or `luthier export --to safetensors`"
            )
        trust = recipe.model.trust_remote_code
        full = recipe.method.name == "full"
        self.source, self.config = base_of(run, recipe)
        self.tokenizer = load_tokenizer(run.weights_path(recipe), trust)
        self.onto: Onto = "original" if full else onto
        compute = run_dtype(run)
        model = skeleton(self.config, trust)
        quantised = quantization(recipe.method, compute)
        self._base = BaseWeights(self.source, model, self.onto, compute, quantised, trust)
        self._changes: Changes | None = None
        if not full and not without_adapter:
            folder = adapter or run.adapter_path
            named = {name for unit in self._base.units for name in unit}
            self._changes = Changes(load_adapter(model, folder), folder, named)
        self.layers = len(self._changes) if self._changes is not None else 0
        self.untied = self._needs_own_head()
        if self.untied:
            self.config.tie_word_embeddings = False
            self.config.get_text_config().tie_word_embeddings = False
        tied = None if self.untied else self._base.tied_head
        self.units = [unit for unit in self._base.units if tied not in unit]
        self.config.get_text_config().vocab_size = self.shape(self._base.ends[0])[0]

    def shape(self, name: str) -> tuple[int, ...]:
        shape = self._base.shape(name)
        if name not in self._base.ends or self._changes is None:
            return shape
        rows = max(self._changes.rows(end) or 0 for end in self._base.ends)
        return (rows or shape[0], *shape[1:])

    def stored_dtype(self, name: str) -> torch.dtype:
        return self._base.dtype(name)

    def is_float(self, name: str) -> bool:
        return self.stored_dtype(name).is_floating_point

    @property
    def parameters(self) -> list[str]:
        """Names of all parameters, as the model calls them."""
        return [name for unit in self.units for name in unit]

    def cut(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors that a Transformers folder holds of a whole unit."""
        return self._base.stored.cut(parameters)

    def __call__(self, name: str) -> Tensor:
        """The value of a parameter; float32 where it is a real number."""
        value = self._base(name)
        if self._changes is None:
            return value
        missing = self.shape(name)[0] - len(value) if name in self._base.ends else 0
        if missing > 0:  # rows of new tokens, which the adapter fills
            value = torch.cat([value, value.new_zeros(missing, value.shape[1])])
        return self._changes.apply(name, value)

    def _needs_own_head(self) -> bool:
        head = self._base.tied_head
        if head is None or self._changes is None:
            return False
        return self._changes.set_apart(self._base.ends[0], head)


def base_of(run: Run, recipe: Recipe) -> tuple[Path, PreTrainedConfig]:
    """The folder that holds the frozen weights of a run (of a full one, its own), and its config."""
    if recipe.method.name == "full":
        folder = run.model_path
    else:
        folder = resolve(recipe.model.source, recipe.model.revision).folder
    return folder, config_of(folder, recipe.model.trust_remote_code, recipe.model.rope_scaling)
