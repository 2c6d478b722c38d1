"""Longer rows than a model was pretrained on: rotary positions scaled by the recipe (model.rope_scaling)."""

import copy
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig

from luthier.errors import UserError

RopeScaling = Mapping[str, Any]

_ORIGINAL = "original_max_position_embeddings"
_NOT_SCALED = ("rope_theta", "partial_rotary_factor")  # what a model keeps of its own


def scaled(config: PreTrainedConfig, scaling: RopeScaling | None) -> PreTrainedConfig:
    """``config`` with ``model.rope_scaling``; it then takes ``factor`` times as many positions.

    Where layers differ in their rotary positions, those with full attention are scaled. A config that
    is scaled so already stays as it is.

    Args:
        scaling: ``rope_parameters`` of Transformers, without what stays the model's own.

    Raises:
        UserError: the model has no rotary positions, or the parameters do not fit it.
    """
    if scaling is None:
        return config
    changed = copy.deepcopy(config)
    text = changed.get_text_config()
    own = getattr(text, "rope_parameters", None)
    positions = getattr(text, "max_position_embeddings", None)
    if not own or not positions:
        raise UserError(
            f"model.rope_scaling: a {config.model_type} model has no rotary position embeddings that "
            "could be scaled; take the key out"
        )
    nested = "full_attention" in own
    before = own["full_attention"] if nested else own
    if not nested and any(isinstance(value, dict) for value in own.values()):
        raise UserError(
            f"model.rope_scaling: the layers of a {config.model_type} model differ in their rotary "
            "positions, and none is called full_attention; take the key out"
        )
    if all(before.get(key) == value for key, value in scaling.items()):
        return config
    original = scaling.get(_ORIGINAL) or before.get(_ORIGINAL) or positions
    kept = {key: before[key] for key in _NOT_SCALED if key in before}
    after = {**kept, **scaling}
    if scaling["rope_type"] != "linear":
        after[_ORIGINAL] = original
    text.rope_parameters = {**own, "full_attention": after} if nested else after
    text.max_position_embeddings = max(positions, round(original * scaling["factor"]))
    try:
        text.validate_rope()
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f"model.rope_scaling does not fit this model: {error}") from None
    return changed
