"""A model of which each process has a part: PyTorch's FSDP2 (``fully_shard``) and its checkpoints (DCP).

Weights, gradients and optimiser states are cut along their first dimension. A layer is put together for
as long as it computes, and its gradient goes back in parts. A process writes its own parts of a
checkpoint, from which any number of processes can go on.

What trains alone may be cut, and its weights stay together from the first forward pass of a step to its last
backward pass: ZeRO's second stage (Rajbhandari et al. 2020) by the same engine.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from peft import PeftModel
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from luthier.data.batches import Batch
from luthier.errors import UserError
from luthier.kernels.lora import is_known
from luthier.kernels.nf4 import is_4bit
from luthier.models.adapters import inner
from luthier.objectives.objective import Objective, Parts

_MODEL, _OPTIMIZER = "model", "optimizer"


def shard(model: nn.Module, device: torch.device, processes: int, *, weights: bool) -> None:
    """Leave each process its part of every weight; ``model`` stays the module it is.

    Args:
        weights: else those that are frozen stay whole, and those that train are whole during a step.

    Raises:
        UserError: a layer in 4 bits is not computed by our own function, which alone can have its weight
            put together anew.
    """
    if weights:
        _prepare_4bit(model)
    mesh = init_device_mesh(device.type, (processes,))
    stay = set() if weights else {p for p in model.parameters() if not p.requires_grad}
    kinds = set(inner(model)._no_split_modules or ())
    cut = None if weights else False  # None: the layers; the loss needs the head, which is outside
    for module in [each for each in model.modules() if type(each).__name__ in kinds] + [model]:
        fully_shard(module, mesh=mesh, reshard_after_forward=cut, ignored_params=stay)


def _prepare_4bit(model: nn.Module) -> None:
    fast = {m.get_base_layer() for m in model.modules() if is_known(m) and "forward" in vars(m)}  # type: ignore[operator]
    for name, layer in model.named_modules():
        if is_4bit(layer):
            if layer not in fast:
                raise UserError(
                    f"{name} is kept in 4 bits and has no adapter that kernels.lora computes, so "
                    "train.parallel fsdp2 cannot cut it: adapt all linear layers "
                    "(method.target_modules: all-linear) without DoRA, or use train.parallel zero2"
                )
            layer.quant_state = layer.weight.quant_state


def cut_again(model: nn.Module) -> None:
    """Give up what a forward pass put together and no backward pass followed."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


class ShardedLoss:
    """The objective of a model that ``shard`` has cut: what ``Shared`` asks for.

    Gradients go to their processes in each micro-batch: whole ones would take the memory that parts save.
    """

    def __init__(self, model: nn.Module, objective: Objective, *, weights: bool) -> None:
        self.model: Any = model
        self.objective = objective
        self.weights = weights

    def __call__(self, batch: Batch) -> tuple[Tensor, Parts]:
        return self.objective.loss(self.model, batch)

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Weights that ``shard`` left whole during a step stay so."""
        self.model.set_reshard_after_backward(self.weights)
        try:
            yield
        finally:
            self.model.set_reshard_after_backward(True)


def is_sharded(model: nn.Module) -> bool:
    """Whether ``shard`` has cut it."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def are_shards(checkpoint: Path) -> bool:
    """Whether ``save_shards`` wrote what is in the folder."""
    return (checkpoint / ".metadata").is_file()


def save_shards(model: nn.Module, optimizer: Optimizer, folder: Path) -> None:
    """Write all that trains and its optimiser states into ``folder``, each process its part."""
    weights, states = get_state_dict(model, optimizer, options=_trained(model))
    save({_MODEL: weights, _OPTIMIZER: states}, checkpoint_id=folder)


def load_shards(model: nn.Module, optimizer: Optimizer | None, checkpoint: Path) -> None:
    """Put what ``save_shards`` wrote into ``model``, whole or cut into any number of parts.

    Args:
        optimizer: None loads weights alone.

    Raises:
        UserError: it is not what this model and optimiser have.
    """
    options, alone = _trained(model), not dist.is_initialized()
    try:
        if optimizer is None:
            weights = get_model_state_dict(model, options=options)
            load({_MODEL: weights}, checkpoint_id=checkpoint, no_dist=alone)
            set_model_state_dict(model, weights, options=options)
            return
        weights, states = get_state_dict(model, optimizer, options=options)
        load({_MODEL: weights, _OPTIMIZER: states}, checkpoint_id=checkpoint, no_dist=alone)
        set_state_dict(
            model,
            optimizer,
            model_state_dict=weights,
            optim_state_dict=states,
            options=options,
        )
    except (CheckpointException, ValueError, KeyError) as error:
        raise UserError(f"the checkpoint {checkpoint} does not fit the model: {error}") from error


def whole_weights(model: nn.Module) -> dict[str, Tensor]:
    """All that trains, by name, on the CPU of rank 0; nothing on the others."""
    options = _trained(model, whole=True)
    found: dict[str, Any] = get_model_state_dict(model, options=options)
    own = {name for name, _ in model.named_parameters()}  # tied weights under one name
    tied = {name for name, _ in model.named_parameters(remove_duplicate=False)} - own
    return {name: tensor for name, tensor in found.items() if name not in tied}


def move_shards(source: Path, target: Path) -> None:
    """From the folder they were written into, which is removed, into ``target``."""
    for file in source.iterdir():
        file.rename(target / file.name)
    shutil.rmtree(source)


def _trained(model: nn.Module, whole: bool = False) -> StateDictOptions:
    """All of a full model; of an adapted one what trains."""
    return StateDictOptions(
        ignore_frozen_params=isinstance(model, PeftModel),
        strict=False,
        full_state_dict=whole,
        cpu_offload=whole,
    )
