"""How several processes share a model, and what they cannot do."""

from contextlib import AbstractContextManager
from typing import Protocol

from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from luthier.data.batches import Batch
from luthier.errors import UserError
from luthier.events import Note, OnEvent
from luthier.objectives.objective import Objective, Parts
from luthier.recipe import Recipe, TrainGroup
from luthier.train.processes import Processes

_BY_PARTS = (
    "adamw_torch_fused",
    "adamw_torch",
    "sgd",
)  # optimisers that look at one number at a time


class Shared(Protocol):
    """A model and its objective, whose gradients the processes average in the backward pass."""

    def __call__(self, batch: Batch) -> tuple[Tensor, Parts]:
        """The objective's summed loss of ``batch`` and its parts."""
        ...

    def no_sync(self) -> AbstractContextManager[None]:
        """Gradients of backward passes in this context wait for the next one outside of it."""
        ...


class _Loss(nn.Module):
    """An objective as a module: a step is one call of it, however often it runs the model."""

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.model = model
        self.objective = objective

    def forward(self, batch: Batch) -> tuple[Tensor, Parts]:
        return self.objective.loss(self.model, batch)


def replicated(model: nn.Module, objective: Objective) -> Shared:
    """``model`` whole in each process; its weights are rank 0's."""
    # Of a batch some experts may see no token.
    made: Shared = DistributedDataParallel(
        _Loss(model, objective), find_unused_parameters=True, gradient_as_bucket_view=True
    )
    return made


def whole(tensor: Tensor) -> Tensor:
    """``tensor`` in one, where each process has a part of it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """What this process has of ``tensor``."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def check_allowed(recipe: Recipe, processes: Processes) -> None:
    """Refuse what several processes cannot do.

    Raises:
        UserError: the recipe asks for it.
    """
    if processes.size == 1:
        return
    alone = f"or train in one process instead of {processes.size}"
    if recipe.train.optimizer_in_backward:
        raise UserError(
            "train.optimizer_in_backward updates weights before the processes have added up their "
            f"gradients: set it to false, {alone}"
        )
    if recipe.train.optim == "adamw_bf16":
        raise UserError(
            "train.optim adamw_bf16 rounds by chance, in each process otherwise, so that their weights "
            f"would come apart: use adamw_torch_fused, {alone}"
        )
    if recipe.train.parallel == "fsdp2":
        _check_sharding(recipe)


def rows_per_step(train: TrainGroup, processes: int) -> str:
    """What the recipe's batch comes to in so many processes, in words."""
    rows, accumulated = train.per_device_train_batch_size, train.gradient_accumulation_steps
    return (
        f"{processes} processes: {rows * accumulated * processes} rows per step "
        f"({rows} per micro-batch x {accumulated} micro-batches x {processes} processes); "
        f"for the steps of one process divide train.gradient_accumulation_steps by {processes}"
    )


def of_same_steps(recipe: Recipe, before: int, now: int, on_event: OnEvent) -> Recipe:
    """The recipe for ``now`` processes that go on with a run of ``before``, with as many rows per step.

    Raises:
        UserError: its micro-batches cannot be divided among them.
    """
    if before == now:
        return recipe
    of_all = recipe.train.gradient_accumulation_steps * before
    if of_all % now:
        raise UserError(
            f"the run was started in {before} processes with {of_all} micro-batches per step in all, which "
            f"{now} processes cannot share evenly; go on in a number of processes that divides {of_all}"
        )
    on_event(
        Note(
            f"the run was started in {before} processes and goes on in {now}, with {of_all // now} "
            "micro-batches per step of each: the rows of each step stay the same"
        )
    )
    changed = recipe.model_copy(deep=True)
    changed.train.gradient_accumulation_steps = of_all // now
    return changed


def _check_sharding(recipe: Recipe) -> None:
    """Refuse what was not made for parts of weights."""
    method, train = recipe.method, recipe.train
    refused = {
        f"method.init_lora_weights {method.init_lora_weights}": method.changes_base,
        f"objective.name {recipe.objective.name}": recipe.objective.name not in ("sft", "distill"),
        f"train.optim {train.optim}": train.optim not in _BY_PARTS,
        "train.stop_on_forgetting": train.stop_on_forgetting is not None,
        "data.add_tokens": bool(recipe.data.add_tokens),
        "model.dtype float16": recipe.model.dtype == "float16",
    }
    for what, is_asked in refused.items():
        if is_asked:
            raise UserError(
                f"{what} does not work with train.parallel fsdp2, which leaves each process a part of "
                "every weight; use train.parallel ddp"
            )
