"""What an adapter does to the parameters of its base, one at a time."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils.other import TrainableTokensWrapper
from torch import Tensor, nn

from luthier.errors import UserError
from luthier.export.skeleton import lora_layers
from luthier.export.weights import Weights


class Changes:
    """An adapter on a model without weights (``skeleton.py``).

    A parameter may be replaced completely (``modules_to_save``, biases, an embedding that was
    resized), in the rows of some tokens (``trainable_token_indices``), and changed by B A.

    Attributes:
        layers: adapted layers by the parameter of the base that they change.
        replaced: parameter → its tensor in the adapter's file.
        tokens: embeddings (and output layers) of which some rows are replaced, by name.
    """

    def __init__(self, model: PeftModel, folder: Path, parameters: Iterable[str]) -> None:
        self._file = Weights(folder, "adapter_model.safetensors")
        self.layers = lora_layers(model)
        known = set(parameters)
        self.replaced = {
            parameter: stored for stored in self._file if (parameter := _in_base(stored)) in known
        }
        self.tokens: dict[str, Any] = {
            name: module.token_adapter
            for name, module in model.get_base_model().named_modules()
            if isinstance(module, TrainableTokensWrapper)
        }

    def __len__(self) -> int:
        """How many layers are changed."""
        changed = {name.rpartition(".")[0] for name in self.layers.keys() | self.replaced.keys()}
        return len(changed | self.tokens.keys())

    def apply(self, parameter: str, value: Tensor) -> Tensor:
        """The parameter (float32) as the adapter makes it of the base's ``value``.

        Raises:
            UserError: the adapter's own weights are non-finite.
        """
        if parameter in self.replaced:
            value = self._file[self.replaced[parameter]].to(value.dtype)
        layer, _, leaf = parameter.rpartition(".")
        if leaf == "weight" and layer in self.tokens:
            value = _with_rows(self.tokens[layer], value)
        adapter = self.layers.get(parameter)
        return value if adapter is None else _fold(parameter, adapter, value)

    def rows(self, parameter: str) -> int | None:
        """How many rows an embedding has under the adapter, where that is another number."""
        if parameter in self.replaced:
            return self._file.shapes[self.replaced[parameter]][0]
        tokens = self.tokens.get(parameter.rpartition(".")[0])
        return int(tokens.get_base_layer().weight.shape[0]) if tokens is not None else None

    def set_apart(self, one: str, other: str) -> bool:
        """Whether two parameters that the base holds as one are two under the adapter."""
        if {one, other} & self.layers.keys():
            return True
        if one in self.replaced and other in self.replaced:
            mine, theirs = (self._file[self.replaced[name]] for name in (one, other))
            return not torch.equal(mine, theirs)
        if {one, other} & self.replaced.keys():
            return True
        rows = [self.tokens.get(name.rpartition(".")[0]) for name in (one, other)]
        # PEFT trains the rows of tied ends once: the second's adapter points to the first's.
        sources = {id(each and (each.tied_adapter or each)) for each in rows}
        return len(sources) > 1


def _in_base(stored: str) -> str:
    """The base's parameter that a tensor of an adapter's file replaces; A and B have none."""
    return stored.removeprefix("base_model.model.").replace(".base_layer.", ".")


def _with_rows(tokens: Any, value: Tensor) -> Tensor:
    (name,) = tokens.active_adapters
    index = torch.tensor(tokens.token_indices[name])
    new = tokens.trainable_tokens_delta[name].detach().to(value)
    return value.index_copy(0, index, new)


def _fold(parameter: str, layer: LoraLayer, weight: Tensor) -> Tensor:
    """The parameter with its adapter in it, by PEFT's own ``merge``."""
    inner: Any = layer.get_base_layer()
    leaf = parameter.rpartition(".")[2]
    empty = getattr(inner, leaf)
    setattr(inner, leaf, nn.Parameter(weight, requires_grad=False))
    try:
        layer.merge(safe_merge=True)
    except ValueError as error:
        raise UserError(f"the adapter of {parameter} does not merge: {error}") from error
    finally:
        folded: Tensor = getattr(inner, leaf).data
        setattr(inner, leaf, empty)
        layer.merged_adapters.clear()  # so that the same tensor can be asked for again
    return folded
