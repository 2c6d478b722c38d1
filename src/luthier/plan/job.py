"""What is to be planned: a model, a method and the batches that will go through them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from luthier.errors import UserError
from luthier.kernels.triton import switch
from luthier.models.load import max_positions, refuse_quantised
from luthier.objectives.reference import asked_in_every_step
from luthier.plan.catalogues import as_on_gpu, find_config
from luthier.plan.kept_steps import step_of
from luthier.plan.simulate import Step, Workload
from luthier.recipe import (
    METHOD_DEFAULTS,
    KernelsGroup,
    MethodGroup,
    MethodName,
    ObjectiveGroup,
    Recipe,
)


@dataclass(frozen=True)
class Job:
    """A fine-tuning run, as far as memory and time depend on it.

    Attributes:
        largest: tokens of each row of the fullest micro-batch that can come; of pairs, of each pair.
        typical: the same of an average one.
        supervised: share of the tokens that count in the loss.
        tokens: tokens of all micro-batches of the run together.
        steps: optimiser steps of the run.
        continues: a trained adapter is trained on.
        rows_tokens: tokens of all training rows, each once.
        taught: tokens of which a teacher's probabilities are kept, those of validation rows too.
        teacher_parameters: of the teacher, 0 without one.
        on_gpu: a GPU computes.
    """

    model: str
    config: PreTrainedConfig
    method: MethodGroup
    dtype: torch.dtype
    optim: str
    gradient_checkpointing: bool
    optimizer_in_backward: bool
    gradient_accumulation_steps: int
    largest: tuple[int, ...]
    typical: tuple[int, ...]
    supervised: float
    tokens: int
    steps: int
    kernels: KernelsGroup
    tokens_added: int = 0
    objective: ObjectiveGroup = field(default_factory=ObjectiveGroup)
    continues: bool = False
    rows_tokens: int = 0
    taught: int = 0
    teacher_parameters: int = 0
    on_gpu: bool = False

    @property
    def asks_reference(self) -> bool:
        """Whether a reference model is asked in every step."""
        return self.objective.has_reference and asked_in_every_step(
            self.objective, self.method, self.continues
        )

    @property
    def reference(self) -> str | None:
        """Where the log-probabilities of a reference come from, in words."""
        if not self.objective.has_reference:
            return None
        if self.asks_reference:
            return "the model with its adapter off, asked in every step"
        return "its log-probabilities, computed once before the first step and kept"

    @property
    def tokens_of_work(self) -> float:
        """``tokens``, and what asking a reference once comes to: forward passes without a backward."""
        if self.objective.has_reference and not self.asks_reference:
            forward = 1 / 3 if self.method.name == "full" else 1 / 2
            return self.tokens + forward * self.rows_tokens
        return self.tokens

    def step(self, lengths: Sequence[int]) -> Step:
        """Simulate one micro-batch of rows of ``lengths`` tokens, and the optimiser's step."""
        supervised = max(1, round(sum(lengths) * self.supervised))
        work = Workload(
            lengths,
            supervised,
            self.dtype,
            self.optim,
            self.gradient_checkpointing,
            self.optimizer_in_backward,
            self.kernels,
            self.tokens_added,
            self.objective,
            self.asks_reference,
            self.on_gpu,
            accumulates=self.gradient_accumulation_steps > 1,
        )
        config = as_on_gpu(self.config) if self.on_gpu else self.config
        return step_of(config, self.method, work)

    def steps_of_both(self) -> tuple[Step, Step]:
        """Of the fullest micro-batch and of an average one."""
        largest = self.step(self.largest)
        return largest, largest if self.typical == self.largest else self.step(self.typical)

    @property
    def positions(self) -> int | None:
        """Longest row that the model can read, in tokens."""
        return max_positions(self.config)

    def here(self) -> "Job":
        """As this machine computes it, whose GPU may lack Triton."""
        if not self.on_gpu or switch.is_installed():
            return self
        return replace(self, kernels=self.kernels.model_copy(update={"triton": False}))

    def check_base(self) -> None:
        """Raise UserError where the base's weights are quantised in a way that the method does not train on."""
        refuse_quantised(self.model, self.config, self.method, self.kernels.fp8_base)

    def with_method(self, name: MethodName) -> "Job":
        """The same data by another method, with that method's own optimiser."""
        method = self.method.model_copy(update={"name": name})
        kernels = self.kernels
        if name != "lora":  # what else it freezes is not put into 8 bits
            kernels = kernels.model_copy(update={"fp8_base": False})
        optim = METHOD_DEFAULTS[name]["optim"]
        return replace(self, method=method, optim=optim, kernels=kernels)

    def with_rows(self, rows: int) -> "Job":
        """Micro-batches of ``rows`` rows, accumulated to the same effective batch."""
        effective = self.gradient_accumulation_steps * len(self.largest)
        return replace(
            self,
            largest=self.largest[:rows],
            typical=spread(self.typical, rows),
            gradient_accumulation_steps=math.ceil(effective / rows),
        )


def job_from_lengths(
    recipe: Recipe,
    config: PreTrainedConfig,
    dtype: torch.dtype,
    items: Sequence[Sequence[int]],
    supervised: int,
    optim: str | None = None,
    held_out: int = 0,
    on_gpu: bool = False,
) -> Job:
    """The job of a recipe whose data is known.

    Args:
        items: tokens of the rows of each training item (one row, or a packed bin of several).
        supervised: tokens that count, of all items together.
        optim: the optimiser that replaces the recipe's on this device, if any.
        held_out: supervised tokens of validation rows.
    """
    train, together = recipe.train, recipe.objective.together
    items = [[sum(item[i : i + together]) for i in range(0, len(item), together)] for item in items]
    by_tokens = sorted(items, key=sum, reverse=True)
    batch = min(train.per_device_train_batch_size, len(items))
    tokens = sum(map(sum, items))
    effective = train.per_device_train_batch_size * train.gradient_accumulation_steps
    per_epoch = math.ceil(len(items) / effective)
    steps = train.max_steps
    if steps <= 0:
        steps = math.ceil(per_epoch * train.num_train_epochs)
    assert train.optim is not None  # the recipe filled in the method's
    return Job(
        model=recipe.model.source,
        config=config,
        method=recipe.method,
        dtype=torch.bfloat16 if train.optim == "adamw_bf16" else dtype,
        optim=optim or train.optim,
        gradient_checkpointing=train.gradient_checkpointing,
        optimizer_in_backward=train.optimizer_in_backward,
        gradient_accumulation_steps=train.gradient_accumulation_steps,
        largest=tuple(n for item in by_tokens[:batch] for n in item),
        typical=spread([sum(item) for item in by_tokens], batch),
        supervised=supervised / tokens,
        tokens=round(tokens * steps / per_epoch),
        steps=steps,
        kernels=recipe.kernels,
        tokens_added=len(recipe.data.add_tokens),
        objective=recipe.objective,
        continues=recipe.model.adapter is not None,
        rows_tokens=tokens,
        taught=supervised + held_out if recipe.objective.teacher is not None else 0,
        teacher_parameters=_parameters(recipe.objective.teacher),
        on_gpu=on_gpu,
    )


def _parameters(model: str | None) -> int:
    """Of a teacher, from its config."""
    if model is None:
        return 0
    with torch.device("meta"):
        built: PreTrainedModel = AutoModelForCausalLM.from_config(find_config(model))
    return built.num_parameters()


def job_from_shape(
    recipe: Recipe, config: PreTrainedConfig, dtype: torch.dtype, rows: int, on_gpu: bool = False
) -> Job:
    """The job of a recipe whose data is not at hand: ``rows`` rows of ``data.max_length`` tokens.

    All tokens count in the loss: the most memory that any data can need. Of pairs both rows are so long.

    Raises:
        UserError: rows are longer than the model can read.
    """
    check_length(recipe.data.max_length, recipe.model.source, config)
    return job_from_lengths(
        recipe,
        config,
        dtype,
        [[recipe.data.max_length] * recipe.objective.together] * rows,
        supervised=rows * recipe.objective.together * (recipe.data.max_length - 1),
        on_gpu=on_gpu,
    )


def check_length(length: int, model: str, config: PreTrainedConfig) -> None:
    """Raise UserError where a row of ``length`` tokens is beyond the model's positions."""
    most = max_positions(config)
    if most is not None and length > most:
        raise UserError(
            f"a sequence of {length:,} tokens exceeds the {most:,} positions of {model}; "
            f"use {most} or less"
        )


def spread(lengths: Sequence[int], count: int) -> tuple[int, ...]:
    """``count`` representative lengths: the means of equal shares, in order of length."""
    ordered = sorted(lengths)
    share = len(ordered) / count
    groups = (
        ordered[int(i * share) : max(int((i + 1) * share), int(i * share) + 1)]
        for i in range(count)
    )
    return tuple(round(sum(group) / len(group)) for group in groups)
