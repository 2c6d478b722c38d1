"""Out of memory: what was predicted, and resuming with smaller micro-batches of the same step."""

import gc

import torch

from luthier.errors import UserError
from luthier.events import Note, OnEvent
from luthier.files import write_json
from luthier.recipe import Recipe
from luthier.run import Run


class OutOfMemory(Exception):
    """The device ran out of memory in a training step or an evaluation."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` is PyTorch's or Python's way to say that memory ran out."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    # The CPU's allocator has no error class of its own.
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def with_micro_batch(recipe: Recipe, rows: int | None) -> Recipe:
    """The recipe with micro-batches of ``rows`` rows and as many rows per step as before."""
    if rows is None:
        return recipe
    smaller = recipe.model_copy(deep=True)
    train = smaller.train
    train.gradient_accumulation_steps *= train.per_device_train_batch_size // rows
    train.per_device_train_batch_size = rows
    return smaller


def smaller_micro_batch(recipe: Recipe, run: Run, error: OutOfMemory, on_event: OnEvent) -> int:
    """The next smaller micro-batch, kept in the run's provenance for the sessions after this one.

    Raises:
        UserError: ``train.auto_batch`` is off, or a micro-batch is one row already.
    """
    begun = run.provenance()
    rows = begun.micro_batch or recipe.train.per_device_train_batch_size
    foretold = _foretold(run)
    if rows == 1 or not recipe.train.auto_batch:
        advice = (
            "lower data.max_length or set train.gradient_checkpointing=true"
            if rows == 1
            else "set train.auto_batch=true to continue with smaller micro-batches of the same step, or "
            f"lower train.per_device_train_batch_size (now {rows}) or data.max_length, or set "
            "train.gradient_checkpointing=true"
        )
        raise UserError(
            f"out of memory with {rows} rows per micro-batch{foretold}; {advice}. {error}"
        )
    smaller = next(size for size in range(rows // 2, 0, -1) if rows % size == 0)
    steps = sorted(run.checkpoints())
    on_event(
        Note(
            f"out of memory with {rows} rows per micro-batch{foretold}; resuming from "
            f"{f'step {steps[-1]}' if steps else 'the beginning'} with {smaller} per micro-batch, "
            "and as many rows per step as before",
            warning=True,
        )
    )
    write_json(run.provenance_path, begun.model_copy(update={"micro_batch": smaller}).to_dict())
    return smaller


def free_memory() -> None:
    """Give back what a model and its optimiser held, once nothing refers to them."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _foretold(run: Run) -> str:
    plan = run.plan()
    if plan is None:
        return ""
    return (
        f" (the plan predicted {plan.memory.peak / 2**30:.2f} GiB at the peak, of "
        f"{plan.device_bytes / 2**30:.1f} GiB)"
    )
