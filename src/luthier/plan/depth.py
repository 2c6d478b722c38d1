"""A step of a deep model, from those of two shallow ones.

Layers that are alike add the same to every piece of a step: to its work, and to what is alive at each
moment of it. So two models of few layers tell what one of many needs, in a fraction of the time: exactly, but
for 512 bytes to which a GPU's allocator may round the norms of all gradients, one tensor.
"""

import copy
import re
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig

from luthier.plan.simulate import Counted, Moment, Step, Workload, count, layers_of
from luthier.recipe import MethodGroup

_FEW = 4  # layers: the first, one within, the last, and one between
_WORTH = 10  # layers from which two simulations of few are less work
_EDGE = 2  # layers at either end that may be unlike those within
_OWN = {"layer_idx", "layer_id", "block_idx"}  # of a layer, which change nothing
_BY_NAME = ("target_modules", "target_parameters", "layers_to_transform", "rank_pattern",
            "alpha_pattern", "modules_to_save", "train_modules", "freeze_modules")  # fmt: skip


def step_by_layers(config: PreTrainedConfig, method: MethodGroup, work: Workload) -> Step:
    """What ``simulate`` says of them, and it raises as it does."""
    depth = int(config.get_text_config().num_hidden_layers)
    if depth >= _WORTH and _are_alike(config) and not _names_layers(method):
        few, more = (count(_cut(config, n), method, work) for n in (_FEW, _FEW + 1))
        if (found := _extended(few, more, depth)) is not None:
            return found.step()
    return count(config, method, work).step()


def _are_alike(config: PreTrainedConfig) -> bool:
    """Whether all layers have the same modules, shapes and settings."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config))
    described = [_described(layer) for layer in layers_of(model)]
    return bool(described) and all(each == described[0] for each in described)


def _described(layer: nn.Module) -> list[Any]:
    return [
        (
            name,
            type(module),
            _settings(module),
            [(k, p.shape) for k, p in module._parameters.items() if p is not None],
        )
        for name, module in layer.named_modules()
    ]


def _settings(module: nn.Module) -> dict[str, Any]:
    kinds = (bool, int, float, str, type(None))
    return {k: v for k, v in vars(module).items() if isinstance(v, kinds) and k not in _OWN}


def _names_layers(method: MethodGroup) -> bool:
    """Whether a setting may pick single layers: by a number, or a pattern that is more than names and ``*``."""
    if isinstance(method.target_modules, str) and method.target_modules != "all-linear":
        return True  # a regular expression
    said = [str(each) for key in _BY_NAME for each in getattr(method, key) or ()]
    return any(re.search(r"[^\w*.-]|\d|\.\.", each) for each in said)


def _cut(config: PreTrainedConfig, layers: int) -> PreTrainedConfig:
    config = copy.deepcopy(config)
    text = config.get_text_config()
    whole = text.num_hidden_layers
    for name, value in list(vars(text).items()):
        if isinstance(value, list) and len(value) == whole:  # one of each layer
            setattr(text, name, value[:layers])
    text.num_hidden_layers = layers
    return config


def _extended(few: Counted, more: Counted, depth: int) -> Counted | None:
    """The step of ``depth`` layers; None where the two are not alike but for a layer."""

    def at(of_few: int, of_more: int) -> int:
        return of_more + (of_more - of_few) * (depth - _FEW - 1)

    peaks: dict[Moment, int] = {}
    for last in (False, True):
        one, two = _near(few.peaks, _FEW, last), _near(more.peaks, _FEW + 1, last)
        if one.keys() != two.keys():
            return None
        peaks |= {(*moment, last): at(one[moment], two[moment]) for moment in one}
    return Counted(
        figures={name: at(few.figures[name], more.figures[name]) for name in few.figures},
        before_head=at(few.before_head, more.before_head),
        peaks=peaks,
    )


def _near(peaks: dict[Moment, int], depth: int, last: bool) -> dict[Moment, int]:
    """The pieces near the first layer, or near the last one, by their distance from it.

    What is alive grows evenly from layer to layer, so the peak of a layer within is between theirs.
    """
    whole = {moment: peak for moment, peak in peaks.items() if len(moment) < 3}
    distances = {
        (*moment[:2], depth - moment[2] if last else moment[2]): peak
        for moment, peak in peaks.items()
        if len(moment) == 3
    }
    return whole | {m: peak for m, peak in distances.items() if m[2] <= _EDGE}
