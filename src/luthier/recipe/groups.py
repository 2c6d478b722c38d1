"""What a recipe holds: its groups and keys, every default once.

Names are those of Transformers' ``TrainingArguments``, PEFT's ``LoraConfig`` and bitsandbytes, so
that what people know holds. The descriptions are the help texts of the keys: `luthier recipe
explain`, the JSON Schema and docs/recipe.md show them as they stand here.
"""

import datetime
import math
import re
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
    field_validator,
    model_validator,
)

# What differs between the methods. Sources: full 2e-5 (Alpaca, Taori et al. 2023); LoRA 3e-4 (Hu et
# al. 2021, and "LoRA Without Regret", Thinking Machines 2025: about ten times the rate of full
# fine-tuning, on all linear layers); QLoRA 2e-4 and the paged 8-bit optimiser (Dettmers et al. 2023).
METHOD_DEFAULTS: dict[str, dict[str, Any]] = {
    "full": {"learning_rate": 2e-5, "weight_decay": 0.01, "optim": "adamw_torch_fused"},
    "lora": {"learning_rate": 3e-4, "weight_decay": 0.0, "optim": "adamw_torch_fused"},
    "qlora": {"learning_rate": 2e-4, "weight_decay": 0.0, "optim": "paged_adamw_8bit"},
}

MethodName = Literal["full", "lora", "qlora"]

# Objectives that learn from preferences, with the keys that each of them has and their defaults: those
# of TRL 1.16 (DPOConfig, KTOConfig, RewardConfig; ORPOConfig and CPOConfig, of which simpo is a loss).
PREFERENCE_DEFAULTS: dict[str, dict[str, Any]] = {
    "dpo": {"beta": 0.1, "precompute_ref_log_probs": None},
    "ipo": {"beta": 0.1, "precompute_ref_log_probs": None},
    "kto": {
        "beta": 0.1,
        "desirable_weight": 1.0,
        "undesirable_weight": 1.0,
        "precompute_ref_log_probs": None,
    },
    "orpo": {"beta": 0.1},
    "simpo": {"beta": 0.1, "simpo_gamma": 0.5},
    "reward": {"center_rewards_coefficient": None},
}

# Of distillation. top_k as is; temperature 1 leaves the teacher's probabilities as they are. Hinton et al.
# 2015 (section 2) found "a considerably lower weight" of the hard loss best, and give no number.
DISTILL_DEFAULTS: dict[str, Any] = {"teacher": None, "top_k": 64, "temperature": 1.0, "alpha": 0.1}

OBJECTIVES = ("sft", "distill", *PREFERENCE_DEFAULTS)

_OBJECTIVE_KEYS = {"distill": DISTILL_DEFAULTS, **PREFERENCE_DEFAULTS}

# Their learning rates. Sources: 1e-6 is the default of TRL's configurations for full fine-tuning, and
# TRL's guides use ten times the rate for adapters; rewards 1e-5 and 1e-4 (TRL's reward script).
PREFERENCE_RATES: dict[str, dict[str, float]] = {
    name: (
        {"full": 1e-5, "lora": 1e-4, "qlora": 1e-4}
        if name == "reward"
        else {"full": 1e-6, "lora": 1e-5, "qlora": 1e-5}
    )
    for name in PREFERENCE_DEFAULTS
}

# The fields of rows that data.columns may map, in all formats.
COLUMN_NAMES = (
    "instruction", "input", "output", "prompt", "completion", "text", "messages", "conversations",
    "system", "tools", "chosen", "rejected",
)  # fmt: skip

_STARTS = re.compile(r"gaussian|pissa|pissa_niter_\d+|olora|eva|loftq")

# Of generated answers. A name that ends in .py is a file of the user's own.
METRICS = (
    *(
        "exact_match",
        "normalised_match",
        "token_f1",
        "rouge_1",
        "rouge_2",
        "rouge_l",
        "bleu",
        "chrf",
    ),
    *("accuracy", "json_valid", "json_schema", "sql_execution", "judge"),
)


# Where a run's figures go besides its folder.
REPORTS = ("tensorboard", "trackio", "wandb", "mlflow")

_NEEDED_BY_METRIC = {
    "sql_execution": "sql_databases",
    "json_schema": "json_schema",
    "judge": "judge_model",
}


# Of all steps; where train.warmup_steps is not given.
WARMUP_RATIO = 0.1


# What Transformers reads of rope_parameters, by rope_type, and what of that has no default.
_ROPE_NEEDS = {
    "linear": {"rope_type", "factor"},
    "yarn": {"rope_type", "factor"},
    "llama3": {"rope_type", "factor", "low_freq_factor", "high_freq_factor"},
}
_ROPE_KEYS = {
    "linear": _ROPE_NEEDS["linear"],
    "yarn": {
        *_ROPE_NEEDS["yarn"],
        *("original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow"),
        *("mscale", "mscale_all_dim", "truncate"),
    },
    "llama3": {*_ROPE_NEEDS["llama3"], "original_max_position_embeddings"},
}


def _field_of_a_format(name: str) -> str:
    if name not in COLUMN_NAMES:
        raise ValueError(f"no format has a field '{name}'; fields are {', '.join(COLUMN_NAMES)}")
    return name


_ColumnName = Annotated[
    str,
    AfterValidator(_field_of_a_format),
    WithJsonSchema({"type": "string", "enum": list(COLUMN_NAMES)}),
]


def _as_list(given: Any) -> Any:
    """``none`` and a name alone, as Transformers takes them, too."""
    if given in ("none", ["none"]):
        return []
    return [given] if isinstance(given, str) else given


def _numbers(arguments: Any) -> Any:
    """YAML reads 1e-5 as text; Pydantic makes numbers only where a key is one."""
    if not isinstance(arguments, dict):
        return arguments
    return {name: _number(value) for name, value in arguments.items()}


def _number(value: Any) -> Any:
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _no_share(steps: Any) -> Any:
    """Transformers takes a share below 1 as ``warmup_steps``, too."""
    if isinstance(steps, float) and 0 < steps < 1:
        raise ValueError(f"a share of all steps is train.warmup_ratio={steps:g}")
    return steps


class Group(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class ModelGroup(Group):
    """The weights to start from, and the number format they compute in."""

    source: str = Field(
        description="the model: a name of `luthier models list`, a local folder, a .gguf file or a "
        "hub id (owner/name)",
        examples=["smollm2-135m"],
    )
    revision: str | None = Field(
        None, description="branch, tag or commit of the model on the hub", examples=["main"]
    )
    adapter: str | None = Field(
        None,
        description="folder of a finished run whose adapter is trained on, instead of a new one; base "
        "model and adapter settings must be those of that run",
        examples=["runs/sft"],
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="number format of the arithmetic and of frozen weights; weights that train "
        "stay in float32 (except with train.optim adamw_bf16)",
    )
    rope_scaling: dict[str, Any] | None = Field(
        None,
        description="read longer rows than the model was pretrained on: Transformers' rope_parameters, "
        "with rope_type (yarn, linear or llama3) and factor; adapters then need it wherever they are "
        "used, and every command here sees to that",
        examples=[{"rope_type": "yarn", "factor": 4}],
    )
    allow_pickle: bool = Field(
        False, description="also read .bin weights where there are no safetensors (tensors only)"
    )
    trust_remote_code: bool = Field(
        False, description="run Python code that ships with the model; only for models you trust"
    )

    @field_validator("rope_scaling")
    @classmethod
    def _same_for_every_row(cls, scaling: dict[str, Any] | None) -> dict[str, Any] | None:
        if scaling is None:
            return None
        # Transformers' old name.
        told = {"rope_type" if key == "type" else key: _number(v) for key, v in scaling.items()}
        kind, factor = told.get("rope_type"), told.get("factor")
        if kind in ("dynamic", "longrope"):
            raise ValueError(
                f"rope_type {kind} turns all rows of a batch by angles that depend on the longest of "
                "them, so that a row would be another beside others; use yarn, linear or llama3"
            )
        if kind not in ("yarn", "linear", "llama3"):
            raise ValueError(f"rope_type is yarn, linear or llama3, not {kind!r}")
        if isinstance(factor, bool) or not isinstance(factor, int | float) or factor < 1:
            raise ValueError(f"factor is a number of 1 or more, not {factor!r}")
        unknown = sorted(told.keys() - _ROPE_KEYS[kind])
        missing = sorted(_ROPE_NEEDS[kind] - told.keys())
        if unknown or missing:
            wrong = f"has no {', '.join(unknown)}" if unknown else f"needs {', '.join(missing)}"
            raise ValueError(
                f"rope_type {kind} {wrong}; its keys are {', '.join(sorted(_ROPE_KEYS[kind]))}"
            )
        return told


class MethodGroup(Group):
    """How the weights change: all of them, or a low-rank adapter beside them."""

    name: MethodName = Field(
        "lora",
        description="fine-tuning method: full trains all weights, lora an adapter, qlora an adapter "
        "beside weights stored in 4 bits",
    )
    lora_r: int = Field(16, ge=1, description="rank of the adapter", examples=[64])
    lora_alpha: int = Field(
        32,
        ge=1,
        description="the adapter's update is scaled by lora_alpha / lora_r",
        examples=[128],
    )
    lora_dropout: float = Field(
        0.05, ge=0, lt=1, description="dropout on the adapter's input", examples=[0.1]
    )
    target_modules: str | list[str] = Field(
        "all-linear",
        description="layers that get an adapter: all-linear, or names such as [q_proj, v_proj]",
        examples=[["q_proj", "v_proj"]],
    )
    target_parameters: list[str] = Field(
        [],
        description="parameters that get an adapter although they are no layers, such as the experts "
        "of some models: [mlp.experts.gate_up_proj]; needs method.lora_dropout 0",
        examples=[["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]],
    )
    layers_to_transform: list[Annotated[int, Field(ge=0)]] | None = Field(
        None,
        min_length=1,
        description="numbers of the layers that get an adapter, from 0; without it all do",
        examples=[[0, 1]],
    )
    rank_pattern: dict[str, Annotated[int, Field(ge=1)]] = Field(
        {},
        description="ranks that differ from method.lora_r, by the name of a layer or a regular "
        "expression",
        examples=[{"q_proj": 32}],
    )
    alpha_pattern: dict[str, Annotated[int, Field(ge=1)]] = Field(
        {},
        description="values that differ from method.lora_alpha, by the name of a layer or a regular "
        "expression",
        examples=[{"q_proj": 64}],
    )
    modules_to_save: list[str] = Field(
        [],
        description="modules beside the adapter that train completely and are saved with it, such as "
        "[embed_tokens, lm_head]",
        examples=[["embed_tokens", "lm_head"]],
    )
    bias: Literal["none", "all", "lora_only"] = Field(
        "none",
        description="biases that train beside the adapter: none, all, or those of adapted layers",
    )
    init_lora_weights: bool | str = Field(
        True,
        description="how the adapter begins: true (A random, B zero), gaussian, pissa, pissa_niter_N "
        "(faster), olora, eva (from the training data), or loftq (qlora: from the error of the 4 "
        "bits)",
        examples=["pissa"],
    )
    loraplus_lr_ratio: float | None = Field(
        None,
        ge=1,
        description="LoRA+: the adapter's B learns this many times as fast as its A",
        examples=[16],
    )
    use_rslora: bool = Field(
        False, description="scale the update by lora_alpha / sqrt(lora_r) instead (rsLoRA)"
    )
    use_dora: bool = Field(
        False, description="train magnitude and direction of the weights separately (DoRA)"
    )
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = Field(
        "nf4", description="qlora: 4-bit number format of the frozen weights"
    )
    bnb_4bit_use_double_quant: bool = Field(
        True, description="qlora: quantise the quantisation constants too"
    )
    train_modules: list[str] = Field(
        [],
        description="full: modules or parameters that train, by name or pattern (layers.[0-3], "
        "*.mlp); the others stay as they are",
        examples=[["layers.*.mlp", "lm_head"]],
    )
    freeze_modules: list[str] = Field(
        [],
        description="full: modules or parameters that stay as they are, by name or pattern",
        examples=[["embed_tokens", "layers.[0-3]"]],
    )

    @field_validator("init_lora_weights")
    @classmethod
    def _known_start(cls, start: bool | str) -> bool | str:
        if start is True or (isinstance(start, str) and _STARTS.fullmatch(start)):
            return start
        raise ValueError(
            "it takes true, gaussian, pissa, pissa_niter_N (a number of iterations), olora, eva or "
            f"loftq, not {start!r}"
        )

    @model_validator(mode="after")
    def _fits_the_method(self) -> "MethodGroup":
        start = str(self.init_lora_weights)
        if self.name == "qlora" and self.changes_base:
            raise ValueError(
                f"method.init_lora_weights {start} takes a part out of the base's weights, which qlora "
                "keeps in 4 bits; use method.name lora, or method.init_lora_weights loftq"
            )
        if self.name == "lora" and start == "loftq":
            raise ValueError(
                "method.init_lora_weights loftq makes up for the error of 4-bit weights; use it with "
                "method.name qlora"
            )
        if self.init_lora_weights is not True and self.target_parameters:
            raise ValueError(
                f"method.init_lora_weights {start} is for layers, not for method.target_parameters; "
                "leave it at true"
            )
        if self.name != "full" and (self.train_modules or self.freeze_modules):
            key = "train_modules" if self.train_modules else "freeze_modules"
            raise ValueError(
                f"method.{key} is for method.name full; what an adapter changes is chosen by "
                "method.target_modules, method.layers_to_transform and method.modules_to_save"
            )
        return self

    @property
    def changes_base(self) -> bool:
        """Whether the adapter begins with a part of the base's weights, taken out of them."""
        return str(self.init_lora_weights).startswith(("pissa", "olora"))


class ReplayGroup(Group):
    """General examples among the training rows, against forgetting."""

    source: str = Field(
        description="general examples, given like data.train; none of them is held out"
    )
    share: float = Field(0.1, gt=0, lt=1, description="their share of all training rows")


class DataGroup(Group):
    """What the model learns from, and which part of each row counts."""

    train: str | list[str] = Field(
        description="training data, one source or a list: files (.jsonl .json .csv .tsv .parquet "
        ".arrow .xlsx .ods), folders, patterns such as data/*.csv, or owner/name on the hub; a folder "
        "or owner/name may end in :split or :configuration/split; or a folder that `luthier data tokenize` "
        "wrote",
        examples=["my.jsonl"],
    )
    validation: str | None = Field(
        None,
        description="validation data, one source; without it a share of data.train is held out",
        examples=["validation.jsonl"],
    )
    validation_fraction: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="share of data.train to hold out where data.validation is not set",
        examples=[0.05],
    )
    format: Literal[
        "auto", "alpaca", "messages", "sharegpt", "prompt_completion", "preference", "text"
    ] = Field("auto", description="format of the rows; auto detects it and says which one it is")
    columns: dict[_ColumnName, str] | None = Field(
        None,
        description="what the rows call the fields of their format, where they have names of their own",
        examples=[{"prompt": "question", "completion": "answer"}],
    )
    template: str = Field(
        "auto",
        description="chat template: model (the model's own), alpaca, or the path of a Jinja file; "
        "auto takes the model's own, or alpaca where it has none",
        examples=["alpaca"],
    )
    template_kwargs: dict[str, str | bool | int | float | None] = Field(
        default_factory=dict,
        description="switches of the chat template, such as enable_thinking; they are kept in the "
        "run's template, so that every answer is asked for as it was trained",
        examples=[{"enable_thinking": False}],
    )
    template_date: Literal["today"] | datetime.date = Field(
        "today",
        description="day that a chat template which reads the clock (Llama 3.x, gpt-oss) writes, in "
        "training and ever after; today is the day on which the run begins",
        examples=["2026-01-31"],
    )
    history: Literal["split", "as_is"] = Field(
        "split",
        description="where the chat template writes earlier turns otherwise than the last (without "
        "their thoughts, say): split trains each answer in a row of its own, as inference asks for "
        "it; as_is trains the conversation as the template writes it",
        examples=["as_is"],
    )
    max_length: int = Field(
        1024,
        ge=8,
        description="longest row in tokens; data.on_too_long says what happens to longer ones",
        examples=[2048],
    )
    max_rows: int | None = Field(
        None,
        ge=1,
        description="train on a random sample of this many rows (train.seed draws it)",
        examples=[1000],
    )
    packing: bool = Field(
        False, description="fill each batch up to data.max_length with whole rows"
    )
    train_on: Literal["completions", "all"] = Field(
        "completions", description="tokens that count in the loss: those of the answers, or all"
    )
    on_bad_row: Literal["error", "skip"] = Field(
        "error", description="what to do with rows that cannot be read or have no answer"
    )
    on_too_long: Literal["skip", "error", "truncate"] = Field(
        "skip",
        description="what to do with rows longer than data.max_length; the data report counts them",
    )
    add_tokens: list[Annotated[str, Field(min_length=1)]] = Field(
        [],
        description="tokens to add to the model's vocabulary where it lacks them, and to train; "
        "beside an adapter their rows of the embedding train alone",
        examples=[["<|im_start|>", "<|im_end|>"]],
    )
    replay: ReplayGroup | None = Field(
        None,
        description="mix general examples into the training rows, against forgetting",
        examples=[{"source": "general.jsonl", "share": 0.1}],
    )

    @field_validator("columns")
    @classmethod
    def _each_column_once(cls, columns: dict[str, str] | None) -> dict[str, str] | None:
        if columns is not None and len(set(columns.values())) < len(columns):
            raise ValueError("two fields cannot be read from one column")
        return columns


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
    lr_scheduler_kwargs: Annotated[dict[str, Any] | None, BeforeValidator(_numbers)] = Field(
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


class ObjectiveGroup(Group):
    """What is learned from a batch: answers, a teacher's probabilities (docs/distill.md), or which of two answers is better (docs/preference.md)."""

    name: str = Field(
        "sft",
        description="sft: supervised fine-tuning; distill: the same, and learn the words that a larger "
        "teacher finds likely; dpo, ipo, orpo or simpo: learn to prefer the chosen "
        "answer of a pair to the rejected one; kto: the same from single answers with a label; reward: "
        "train a model that scores answers; or the name of an installed plugin (docs/plugins.md)",
        examples=["dpo"],
    )
    beta: float | None = Field(
        None,
        gt=0,
        description="how far the model may move from the reference: the smaller, the further (dpo, "
        "ipo, kto; 0.1); the weight of the odds ratio (orpo; 0.1); the scale of rewards (simpo; 0.1)",
        examples=[0.1],
    )
    simpo_gamma: float | None = Field(
        None,
        ge=0,
        description="simpo: the margin between the rewards of both answers that is aimed at (0.5)",
        examples=[0.5],
    )
    desirable_weight: float | None = Field(
        None,
        gt=0,
        description="kto: the weight of answers with the label true (1); where there are few of "
        "them, raise it until both kinds weigh about the same",
        examples=[1.33],
    )
    undesirable_weight: float | None = Field(
        None,
        gt=0,
        description="kto: the weight of answers with the label false (1)",
        examples=[1.0],
    )
    center_rewards_coefficient: float | None = Field(
        None,
        gt=0,
        description="reward: the weight of a penalty on rewards whose mean over a pair is not 0",
        examples=[0.01],
    )
    precompute_ref_log_probs: bool | None = Field(
        None,
        description="dpo, ipo, kto: ask the reference model once before the first step and keep its "
        "log-probabilities, instead of asking it in every step; without it adapters ask in every step "
        "(the adapter off) and full fine-tuning once",
        examples=[True],
    )
    teacher: str | None = Field(
        None,
        description="distill: the model to learn from, written as model.source; it must have the same "
        "tokenizer, and safetensors weights without code of their own",
        examples=["runs/large/model"],
    )
    top_k: int | None = Field(
        None,
        ge=1,
        description="distill: of how many tokens the teacher's probabilities are kept at each position; "
        "all others count as one (64)",
        examples=[32],
    )
    temperature: float | None = Field(
        None,
        gt=0,
        description="distill: both models' logits are divided by it for the loss; above 1, unlikely "
        "tokens count for more (1)",
        examples=[2.0],
    )
    alpha: float | None = Field(
        None,
        ge=0,
        le=1,
        description="distill: the weight of the cross-entropy of the rows' own answers; the teacher has "
        "the rest (0.1)",
        examples=[0.5],
    )

    @model_validator(mode="after")
    def _fits_the_objective(self) -> "ObjectiveGroup":
        usual = _OBJECTIVE_KEYS.get(self.name, {})
        for key in type(self).model_fields:
            if key == "name":
                continue
            if key not in usual and getattr(self, key) is not None:
                having = [name for name, keys in _OBJECTIVE_KEYS.items() if key in keys]
                raise ValueError(
                    f"objective.{key} is not a key of the objective {self.name}; it belongs to "
                    f"{', '.join(having)}: set objective.name, or take the key out"
                )
            if getattr(self, key) is None and usual.get(key) is not None:
                setattr(self, key, usual[key])
                self.model_fields_set.discard(key)  # it follows when the objective changes
        if self.name == "distill" and self.teacher is None:
            raise ValueError(
                "the objective distill needs a model to learn from: set objective.teacher to a model with "
                "the same tokenizer, written as model.source"
            )
        return self

    @property
    def learns_from(self) -> Literal["answers", "pairs", "labels"]:
        """The kind of rows: answers, pairs of a better and a worse one, or answers with a label."""
        if self.name == "kto":
            return "labels"
        return "pairs" if self.name in PREFERENCE_DEFAULTS else "answers"

    @property
    def is_likelihood(self) -> bool:
        """Whether the loss is the cross-entropy of answers, which a perplexity can be made of."""
        return self.learns_from == "answers" and self.name != "distill"

    @property
    def together(self) -> int:
        """Token rows that stay together: both of a pair; for kto a row and a mismatched answer."""
        return 1 if self.learns_from == "answers" else 2

    @property
    def scores(self) -> bool:
        """Whether what is trained scores answers, and writes none."""
        return self.name == "reward"

    @property
    def has_reference(self) -> bool:
        """Whether the model is compared with the one that it began as."""
        return "precompute_ref_log_probs" in PREFERENCE_DEFAULTS.get(self.name, {})


class KernelsGroup(Group):
    """Fast paths of training. Each is exact; false runs the reference implementation instead."""

    loss: bool = Field(
        True, description="compute output head and loss in pieces, never all logits at once"
    )
    lora: bool = Field(True, description="compute frozen layer and adapter in one function")
    attention: bool = Field(
        True, description="attend within each packed row on its own, not under one large mask"
    )
    norm: bool = Field(True, description="keep only the input of an RMS norm for the backward pass")
    gated: bool = Field(
        True, description="keep only the inputs of SwiGLU and GeGLU for the backward pass"
    )
    rotary: bool = Field(
        True, description="keep nothing of rotary embeddings for the backward pass"
    )
    triton: bool = Field(
        True,
        description="on an NVIDIA GPU, compute what the others name in one pass each, by kernels in Triton",
    )


class EvaluateGroup(Group):
    """How `luthier evaluate` compares the base model with the tuned one."""

    metrics: list[str] = Field(
        ["exact_match", "rouge_l", "chrf"],
        description=f"metrics of the generated answers: {', '.join(METRICS)}, an installed plugin, "
        "or a .py file with score(answer, row); accuracy is added where the references form a set of labels",
        examples=[["exact_match", "bleu"]],
    )
    max_rows: int = Field(
        100,
        ge=0,
        description="held-out rows to generate answers for; 0: none, only the loss",
        examples=[20],
    )
    max_new_tokens: int = Field(
        256, ge=1, description="longest generated answer in tokens", examples=[64]
    )
    batch_size: int = Field(
        64,
        ge=1,
        description="answers of each side to generate at once; fewer where memory does not hold them",
        examples=[4],
    )
    sql_databases: str | None = Field(
        None,
        description="for sql_execution: folder of <name>.sql or <name>.sqlite files, which rows name "
        "in their 'database' field",
        examples=["databases"],
    )
    json_schema: str | None = Field(
        None,
        description="for json_schema: file of the JSON Schema that answers must meet",
        examples=["answer.schema.json"],
    )
    judge_model: str | None = Field(
        None, description="for judge: name of the model that grades answers", examples=["gpt-4o"]
    )
    judge_url: str = Field(
        "https://api.openai.com/v1",
        description="for judge: URL of an endpoint that speaks OpenAI's protocol",
        examples=["http://localhost:8000/v1"],
    )
    judge_key_env: str = Field(
        "OPENAI_API_KEY",
        description="for judge: environment variable that holds the endpoint's API key",
        examples=["JUDGE_API_KEY"],
    )
    reward_model: str | None = Field(
        None,
        description="folder of a finished run of the objective reward: it says which of two generated "
        "answers is better, the base's or the tuned model's (win rate)",
        examples=["runs/reward"],
    )
    win_rate: bool | None = Field(
        None,
        description="ask which of two generated answers is better, the base's or the tuned model's: "
        "evaluate.judge_model, in both orders, and evaluate.reward_model; without this key a reward "
        "model is always asked, and a judge for objectives that learn from preferences",
        examples=[True],
    )

    probe: bool = Field(
        True,
        description="ask general questions to detect forgetting: a few during training, all of them "
        "in luthier evaluate",
    )
    max_accuracy_drop: float = Field(
        0.05,
        gt=0,
        le=1,
        description="a run has forgotten if its accuracy on general questions drops by more than this",
        examples=[0.1],
    )
    max_perplexity_ratio: float = Field(
        1.5,
        gt=1,
        description="a run has forgotten if its perplexity on general text rises beyond this many "
        "times the base model's",
        examples=[2.0],
    )
    max_leakage: float = Field(
        0.1,
        gt=0,
        le=1,
        description="a run has forgotten if more than this share of its answers to unrelated "
        "questions has the form of the training answers",
        examples=[0.2],
    )

    @field_validator("metrics")
    @classmethod
    def _each_once(cls, names: list[str]) -> list[str]:
        return list(dict.fromkeys(names))

    @model_validator(mode="after")
    def _metrics_have_what_they_need(self) -> "EvaluateGroup":
        for metric, key in _NEEDED_BY_METRIC.items():
            if metric in self.metrics and getattr(self, key) is None:
                raise ValueError(f"evaluate.metrics {metric} needs evaluate.{key}")
        if self.win_rate and self.judge_model is None and self.reward_model is None:
            raise ValueError(
                "evaluate.win_rate needs evaluate.judge_model or evaluate.reward_model, which say which "
                "of two answers is better"
            )
        return self


class RunGroup(Group):
    """Where the run folder goes."""

    name: str | None = Field(
        None,
        description="name of the run folder; without it a name is made from the recipe",
        examples=["first"],
    )
    dir: str = Field(
        "runs", description="folder that holds the run folders", examples=["/data/runs"]
    )
