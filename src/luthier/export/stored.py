"""How the files of a model hold its parameters: by other names, or cut up (an expert in each tensor).

By the rules with which Transformers itself loads and saves the model.
"""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
    revert_weight_conversion,
)

from luthier.errors import UserError
from luthier.export.weights import Weights


@dataclass
class _Unit:
    """Tensors of the files from which one rule makes parameters.

    Attributes:
        rule: None where the one tensor is the one parameter.
        parts: stored names, with the pattern of the rule that each fits.
    """

    rule: WeightConverter | None
    parts: list[tuple[str, str]] = field(default_factory=list)


class StoredParameters:
    """The parameters (and kept buffers) of ``model`` in ``weights``.

    Attributes:
        shapes: parameter → shape, as the model computes with it.
        dtypes: parameter → dtype in the files.
        units: parameters that are written together, in the order of the files.

    Raises:
        UserError: the files lack a parameter, or hold it in a form that Transformers has no rule for.
    """

    def __init__(self, model: PreTrainedModel, weights: Weights) -> None:
        self._model, self._weights = model, weights
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, torch.dtype] = {}
        self.units: list[tuple[str, ...]] = []
        self._unit: dict[str, tuple[str, _Unit]] = {}
        rules = get_model_conversion_mapping(model)
        expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        for first, unit in _collected(model, weights, rules, expected).items():
            blank = {
                name: torch.empty(weights.shapes[name], dtype=weights.dtypes[name], device="meta")
                for name, _ in unit.parts
            }
            try:
                made = self._convert(first, unit, blank)
            except (RuntimeError, ValueError):  # an expert is not there, or has another shape
                continue
            if any(expected.get(name) != tuple(value.shape) for name, value in made.items()):
                continue
            self.units.append(tuple(made))
            for name, value in made.items():
                self._unit[name] = (first, unit)
                self.shapes[name], self.dtypes[name] = tuple(value.shape), value.dtype
        _refuse_missing(model, self.shapes)
        # What Transformers itself keeps of a load, so that saving takes it back and nothing else.
        used: Any = [rule for rule in rules if rule.was_used()]
        model._weight_conversions = used

    def __contains__(self, parameter: str) -> bool:
        return parameter in self.shapes

    def __getitem__(self, parameter: str) -> Tensor:
        """The parameter in the dtype of the files."""
        first, unit = self._unit[parameter]
        parts = {name: self._weights[name] for name, _ in unit.parts}
        return self._convert(first, unit, parts)[parameter]

    def cut(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors that the files hold of a whole unit of parameters."""
        made: dict[str, Tensor] = revert_weight_conversion(self._model, dict(parameters))
        return made

    def _convert(self, first: str, unit: _Unit, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if unit.rule is None:
            return {first: parts[unit.parts[0][0]]}
        rule: Any = copy.deepcopy(unit.rule)  # which takes tensors as well as futures
        for name, pattern in unit.parts:
            rule.add_tensor(first, name, pattern, parts[name])
        made: dict[str, Any] = rule.convert(first, model=self._model, config=self._model.config)
        return {name: v[0] if isinstance(v, list) else v for name, v in made.items()}


def _collected(
    model: PreTrainedModel,
    weights: Weights,
    rules: Iterable[Any],
    expected: Mapping[str, tuple[int, ...]],
) -> dict[str, _Unit]:
    """First parameter of a unit → the unit: the loop of ``convert_and_load_state_dict_in_model``."""
    rules = list(rules)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    by_pattern = {pattern: rule for rule in converters for pattern in rule.source_patterns}
    prefix, known = model.base_model_prefix, model.state_dict()
    units: dict[str, _Unit] = {}
    for stored in sorted(weights, key=dot_natural_key):
        name, pattern = rename_source_key(stored, renamings, converters, prefix, known)
        if name not in expected and stored in expected:
            name, pattern = stored, None
        if name not in expected:
            continue
        if pattern is None:
            units[name] = _Unit(None, [(stored, stored)])
        else:
            units.setdefault(name, _Unit(by_pattern[pattern])).parts.append((stored, pattern))
    return units


def _refuse_missing(model: PreTrainedModel, found: Mapping[str, Any]) -> None:
    tied = set(getattr(model, "all_tied_weights_keys", None) or {})
    parameters = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    missing = [name for name in parameters if name not in found and name not in tied]
    if missing:
        raise UserError(
            f"the files of this model lack {missing[0]}, or store it in another form than it computes "
            f"with ({len(missing)} such tensors); merging it tensor by tensor is not supported. "
            "`merge_and_unload` of PEFT does it, with all of the model in memory"
        )
