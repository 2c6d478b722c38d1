"""The group `train`."""

import math
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator

from luthier.recipe.groups.group import Group, numbers

# Where a run's figures go besides its folder.
REPORTS = ("tensorboard", "trackio", "wandb", "mlflow")


# Of all steps; where train.warmup_steps is not given.
WARMUP_RATIO = 0.1


def _as_list(given: Any) -> Any:
    """``none`` and a name alone, as Transformers takes them, too."""
    if given in ("none", ["none"]):
        return []
    return [given] if isinstance(given, str) else given


def _no_share(steps: Any) -> Any:
    """Transformers takes a share below 1 as ``warmup_steps``, too."""
    if isinstance(steps, float) and 0 < steps < 1:
        raise ValueError(f"a share of all steps is train.warmup_ratio={steps:g}")
    return steps


class TrainGroup(Group):
    """The optimisation, in the names of Transformers' TrainingArguments."""

    num_train_epochs: float = Field(
        3.0, gt=0, description="passes over the training rows", examples=[1]
    )
    max_steps: int = Field(
        -1,
        ge=-1,
        description="stop after this many steps; -1: train.num_train_epochs decides",
        examples=[100],
    )
    per_device_train_batch_size: int = Field(
        4, ge=1, description="rows per micro-batch", examples=[1]
    )
    gradient_accumulation_steps: int = Field(
        4, ge=1, description="micro-batches per step", examples=[16]
    )
    auto_batch: bool = Field(
        False,
        description="when memory runs out, go on with smaller micro-batches and as many rows per step",
    )
    per_device_eval_batch_size: int = Field(
        8, ge=1, description="rows per evaluation batch", examples=[2]
    )
    learning_rate: float | None = Field(
        None, gt=0, description="peak learning rate", examples=[0.0001]
    )
    lr_scheduler_type: Literal[
        "linear",
        "cosine",
        "constant",
        "constant_with_warmup",
        "polynomial",
        "inverse_sqrt",
        "cosine_with_restarts",
        "cosine_with_min_lr",
        "cosine_warmup_with_min_lr",
        "warmup_stable_decay",
    ] = Field(
        "cosine",
        description="how the learning rate changes after warm-up: a schedule of Transformers",
    )
    lr_scheduler_kwargs: Annotated[dict[str, Any] | None, BeforeValidator(numbers)] = Field(
        None,
        description="arguments of the schedule, those of Transformers: min_lr or min_lr_rate for "
        "cosine_with_min_lr, num_decay_steps for warmup_stable_decay, num_cycles for "
        "cosine_with_restarts, lr_end and power for polynomial, timescale for inverse_sqrt",
        examples=[{"min_lr_rate": 0.1}],
    )
    warmup_ratio: float | None = Field(
        WARMUP_RATIO,
        ge=0,
        lt=1,
        description="share of all steps over which the learning rate rises to its peak; it does not "
        "count where train.warmup_steps is set",
        examples=[0.03],
    )
    warmup_steps: Annotated[int | None, BeforeValidator(_no_share)] = Field(
        None,
        ge=0,
        description="steps over which the learning rate rises to its peak, instead of "
        "train.warmup_ratio",
        examples=[10],
    )
    weight_decay: float | None = Field(
        None, ge=0, description="decoupled weight decay, as in AdamW", examples=[0.1]
    )
    optim: (
        Literal[
            "adamw_torch_fused",
            "adamw_torch",
            "adamw_bf16",
            "adamw_8bit",
            "paged_adamw_8bit",
            "paged_adamw_32bit",
            "adafactor",
            "sgd",
        ]
        | None
    ) = Field(
        None,
        description="optimiser; adamw_bf16 keeps weights, gradients and states in bfloat16 with "
        "stochastic rounding (full fine-tuning only)",
        examples=["adamw_8bit"],
    )
    optimizer_in_backward: bool = Field(
        False,
        description="update each weight as soon as its gradient is computed, and free the gradient; "
        "needs train.gradient_accumulation_steps 1 and train.max_grad_norm 0",
    )
    parallel: Literal["ddp", "zero2", "fsdp2"] = Field(
        "ddp",
        description="what each of several processes holds; ddp: the whole model; zero2: all weights, a part "
        "of the gradients and optimiser states; fsdp2: a part of them all (docs/processes.md)",
    )
    max_grad_norm: float = Field(
        1.0,
        ge=0,
        description="clip the norm of the gradients to this; 0: no clipping",
        examples=[0.3],
    )
    neftune_noise_alpha: float | None = Field(
        None,
        gt=0,
        description="NEFTune: in training, add uniform noise of up to alpha / sqrt(tokens of the row x "
        "hidden size) to the embeddings",
        examples=[5],
    )
    gradient_checkpointing: bool = Field(
        False,
        description="recompute activations in the backward pass: less memory, about a third more time",
    )
    activation_offload: bool = Field(
        False, description="keep activations in host memory until the backward pass; for GPUs"
    )
    compile: Literal["auto", "always", "never"] = Field(
        "auto",
        description="compile element-wise operations; auto: where there is a compiler and the run "
        "is long enough to gain by it",
    )
    logging_steps: int = Field(
        1, ge=1, description="steps between lines of metrics.jsonl", examples=[10]
    )
    eval_steps: float = Field(
        0.2,
        gt=0,
        description="steps between evaluations; below 1: a share of all steps",
        examples=[50],
    )
    eval_rows: int | None = Field(
        200,
        ge=1,
        description="validation rows, a random sample, of each evaluation during training; "
        "null: all of them",
        examples=[50],
    )
    save_steps: float = Field(
        0.2,
        gt=0,
        description="steps between checkpoints; below 1: a share of all steps",
        examples=[50],
    )
    save_total_limit: int = Field(
        2, ge=1, description="checkpoints to keep, besides the best one", examples=[5]
    )
    early_stopping_patience: int | None = Field(
        None,
        ge=1,
        description="stop after this many evaluations in a row without a lower validation loss",
        examples=[3],
    )
    stop_on_forgetting: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="stop when the accuracy on general questions has fallen by this much, and keep "
        "the weights from before",
        examples=[0.1],
    )
    seed: int = Field(
        42,
        ge=0,
        description="seed of new weights, dropout, row order and validation split",
        examples=[1],
    )
    report_to: Annotated[
        list[str], BeforeValidator(_as_list, json_schema_input_type=list[str] | str)
    ] = Field(
        ["tensorboard"],
        description=f"where to log besides metrics.jsonl: {', '.join(REPORTS)}, or an installed "
        "plugin; none: nowhere",
        examples=[["tensorboard", "wandb"]],
    )

    @field_validator("report_to")
    @classmethod
    def _each_once(cls, names: list[str]) -> list[str]:
        return list(dict.fromkeys(names))

    def warmup_of(self, max_steps: int) -> int:
        """Steps of warm-up in a run of ``max_steps``."""
        if self.warmup_steps is not None:
            return self.warmup_steps
        return math.ceil(max_steps * (self.warmup_ratio or 0))
