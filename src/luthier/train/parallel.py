"""How several processes share a model, and what they cannot do."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from luthier.data.batches import Batch
from luthier.errors import UserError
from luthier.events import Note, OnEvent
from luthier.kernels import fp8
from luthier.objectives.objective import Objective, Parts
from luthier.recipe import Recipe, TrainGroup
from luthier.train.processes import Processes


class Shared(Protocol):
    """A model and its objective, whose gradients the processes average in the backward pass."""

    def __call__(self, batch: Batch) -> tuple[Tensor, Parts]:
        """The objective's summed loss of ``batch`` and its parts."""
        ...

    def no_sync(self) -> AbstractContextManager[None]:
        """More backward passes of this step come after those in this context: what can wait, waits."""
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
    loss = _Loss(model, objective)
    # What is in 8 bits, which not all backends send, each process has made of the same files.
    small = [name for name, p in loss.named_parameters() if p.dtype == fp8.DTYPE]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(loss, small)
    # Of a batch some experts may see no token.
    made: Shared = DistributedDataParallel(
        loss, find_unused_parameters=True, gradient_as_bucket_view=True
    )
    return made


def whole(tensor: Tensor) -> Tensor:
    """``tensor`` in one, where each process has a part of it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """What this process has of ``tensor``."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def in_parts(recipe: Recipe, processes: Processes) -> bool:
    """Whether each process holds a part of what trains."""
    return processes.size > 1 and recipe.train.parallel in _PARTS


@dataclass(frozen=True)
class _Refusal:
    """What does not work with some ways of ``train.parallel``, why, and what does."""

    key: str
    asked: Callable[[Recipe], bool]
    ways: tuple[str, ...]
    why: str
    instead: str


_PARTS = ("fsdp2", "zero2")
_ONE_BY_ONE = ("adamw_torch_fused", "adamw_torch", "sgd", "adamw_bf16")  # for each number by itself
_REFUSED = (
    _Refusal(
        "train.optimizer_in_backward",
        lambda recipe: recipe.train.optimizer_in_backward,
        ("ddp", *_PARTS),
        "updates weights before the processes have added up their gradients",
        "set it to false",
    ),
    _Refusal(
        "train.optim",
        lambda recipe: recipe.train.optim == "adamw_bf16",
        ("ddp",),
        "rounds by chance, in each process otherwise, so that their weights would come apart",
        "use adamw_torch_fused, or train.parallel zero2",
    ),
    _Refusal(
        "train.optim",
        lambda recipe: recipe.train.optim not in _ONE_BY_ONE,
        _PARTS,
        "looks at blocks or rows of a weight, of which each process has another part",
        "use adamw_torch_fused, or train.parallel ddp",
    ),
    _Refusal(
        "method.init_lora_weights",
        lambda recipe: recipe.method.changes_base,
        _PARTS,
        "changes the base, from which a checkpoint must tell the adapter's weights, whole ones",
        "use train.parallel ddp",
    ),
    _Refusal(
        "data.add_tokens",
        lambda recipe: bool(recipe.data.add_tokens),
        _PARTS,
        "trains some rows of the embedding, which are not cut",
        "use train.parallel ddp",
    ),
    _Refusal(
        "model.dtype",
        lambda recipe: recipe.model.dtype == "float16",
        _PARTS,
        "scales the loss, and each process would find overflows in its own part alone",
        "use bfloat16, or train.parallel ddp",
    ),
)


def check_allowed(recipe: Recipe, processes: Processes) -> None:
    """Refuse what several processes cannot do.

    Raises:
        UserError: the recipe asks for it.
    """
    if processes.size == 1:
        return
    way = recipe.train.parallel
    for each in _REFUSED:
        if way in each.ways and each.asked(recipe):
            group, _, name = each.key.partition(".")
            raise UserError(
                f"{each.key} {getattr(getattr(recipe, group), name)} does not work in {processes.size} "
                f"processes with train.parallel {way}: it {each.why}; {each.instead}, or train in one process"
            )


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
