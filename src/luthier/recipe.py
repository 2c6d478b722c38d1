"""The recipe: the one object that says everything about a run, and its YAML.

Every default of the project lives here, once. Names are those of Transformers'
``TrainingArguments``, PEFT's ``LoraConfig`` and bitsandbytes, so that what people know holds.
"""

import difflib
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from luthier.credentials import holds_secret, masked
from luthier.errors import UserError
from luthier.files import user_path
from luthier.yaml_text import parse_yaml

# What differs between the methods. Sources: full 2e-5 (Alpaca, Taori et al. 2023); LoRA 3e-4 (Hu et
# al. 2021, and "LoRA Without Regret", Thinking Machines 2025: about ten times the rate of full
# fine-tuning, on all linear layers); QLoRA 2e-4 and the paged 8-bit optimiser (Dettmers et al. 2023).
METHOD_DEFAULTS: dict[str, dict[str, Any]] = {
    "full": {"learning_rate": 2e-5, "weight_decay": 0.01, "optim": "adamw_torch_fused"},
    "lora": {"learning_rate": 3e-4, "weight_decay": 0.0, "optim": "adamw_torch_fused"},
    "qlora": {"learning_rate": 2e-4, "weight_decay": 0.0, "optim": "paged_adamw_8bit"},
}


_SHOWN = 200  # characters of a wrong value in a message

MethodName = Literal["full", "lora", "qlora"]

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


_NEEDED_BY_METRIC = {
    "sql_execution": "sql_databases",
    "json_schema": "json_schema",
    "judge": "judge_model",
}


class _Group(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class ModelGroup(_Group):
    """Which weights, and in which number format they compute."""

    source: str = Field(description="known name, local folder, .gguf file or hub id")
    revision: str | None = Field(None, description="hub revision: branch, tag or commit")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="dtype of frozen weights and of the arithmetic; weights that train stay float32",
    )
    allow_pickle: bool = Field(
        False, description="read .bin weights too, where there are no safetensors (tensors only)"
    )
    trust_remote_code: bool = Field(False, description="run Python code that ships with the model")


class MethodGroup(_Group):
    """How the weights change: all of them, or a low-rank adapter beside them."""

    name: MethodName = Field("lora", description="fine-tuning method")
    lora_r: int = Field(16, ge=1, description="rank of the adapter")
    lora_alpha: int = Field(32, ge=1, description="adapter scale is lora_alpha / lora_r")
    lora_dropout: float = Field(0.05, ge=0, lt=1, description="dropout before the adapter")
    target_modules: str | list[str] = Field(
        "all-linear", description="'all-linear' or names such as [q_proj, v_proj]"
    )
    use_rslora: bool = Field(False, description="scale by lora_alpha / sqrt(lora_r)")
    use_dora: bool = Field(False, description="weight-decomposed LoRA")
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = Field("nf4", description="qlora: 4-bit code")
    bnb_4bit_use_double_quant: bool = Field(
        True, description="qlora: quantise the quantisation constants too"
    )


class ReplayGroup(_Group):
    """General examples among the training rows, against forgetting."""

    source: str = Field(description="like data.train; never a part of the validation set")
    share: float = Field(0.1, gt=0, lt=1, description="share of the training rows they make up")


class DataGroup(_Group):
    """What is learned from, and which part of each row counts."""

    train: str | list[str] = Field(
        description="sources: files (.jsonl .json .csv .parquet), folders, patterns like data/*.csv, "
        "or owner/name[:split] on the hub"
    )
    validation: str | None = Field(None, description="source; else a share of train is held out")
    validation_fraction: float = Field(0.1, ge=0, lt=1, description="share held out of train")
    format: Literal["auto", "alpaca", "messages", "sharegpt", "prompt_completion", "text"] = Field(
        "auto", description="row format; auto detects and says which"
    )
    template: str = Field(
        "auto", description="auto, model, alpaca, or the path of a Jinja chat template"
    )
    max_length: int = Field(1024, ge=8, description="longest row, in tokens")
    max_rows: int | None = Field(None, ge=1, description="use a seeded sample of so many rows")
    packing: bool = Field(False, description="fill batches to max_length with whole rows")
    train_on: Literal["completions", "all"] = Field(
        "completions", description="tokens that count in the loss"
    )
    on_bad_row: Literal["error", "skip"] = Field(
        "error", description="rows that cannot be read or have no answer"
    )
    on_too_long: Literal["skip", "error", "truncate"] = Field(
        "skip", description="rows over max_length; what happens is always reported"
    )
    replay: ReplayGroup | None = Field(
        None, description="general examples against forgetting: {source: FILE, share: 0.1}"
    )


class TrainGroup(_Group):
    """The optimisation, in the names of Transformers' TrainingArguments."""

    num_train_epochs: float = Field(3.0, gt=0, description="passes over the training rows")
    max_steps: int = Field(-1, ge=-1, description="stop after so many steps; -1: by epochs")
    per_device_train_batch_size: int = Field(4, ge=1, description="rows a micro-batch")
    gradient_accumulation_steps: int = Field(4, ge=1, description="micro-batches a step")
    auto_batch: bool = Field(
        False, description="out of memory: smaller micro-batches, as many rows a step, and go on"
    )
    per_device_eval_batch_size: int = Field(8, ge=1, description="rows an evaluation batch")
    learning_rate: float | None = Field(None, gt=0, description="peak rate; None: the method's")
    lr_scheduler_type: Literal[
        "linear", "cosine", "constant", "constant_with_warmup", "polynomial", "inverse_sqrt"
    ] = Field("cosine", description="how the rate falls after warm-up")
    warmup_ratio: float = Field(0.1, ge=0, lt=1, description="share of steps the rate climbs over")
    weight_decay: float | None = Field(None, ge=0, description="AdamW's decoupled decay")
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
        description="None: the method's. adamw_bf16: weights, gradients and states in bfloat16, "
        "rounded stochastically; full fine-tuning only",
    )
    optimizer_in_backward: bool = Field(
        False,
        description="update each weight as soon as its gradient is there, and keep none; needs "
        "gradient_accumulation_steps 1 and max_grad_norm 0",
    )
    max_grad_norm: float = Field(1.0, ge=0, description="clip gradients to this norm; 0: never")
    gradient_checkpointing: bool = Field(False, description="recompute activations, save memory")
    activation_offload: bool = Field(
        False, description="keep what the backward needs in host memory; for GPUs"
    )
    compile: Literal["auto", "always", "never"] = Field(
        "auto",
        description="compile element-wise work; auto: in runs long enough to pay for it, where "
        "there is a compiler",
    )
    logging_steps: int = Field(1, ge=1, description="steps between lines of metrics.jsonl")
    eval_steps: float = Field(0.2, gt=0, description="steps, or a share of all steps if below 1")
    eval_rows: int | None = Field(
        200,
        ge=1,
        description="seeded sample of validation rows for evaluations on the way; None: all",
    )
    save_steps: float = Field(0.2, gt=0, description="steps, or a share of all steps if below 1")
    save_total_limit: int = Field(2, ge=1, description="checkpoints kept, the best one besides")
    early_stopping_patience: int | None = Field(
        None, ge=1, description="stop after so many evaluations without a better validation loss"
    )
    stop_on_forgetting: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="stop when the probe's accuracy has fallen by so much, and keep earlier weights",
    )
    seed: int = Field(42, ge=0, description="seeds weights, dropout, order and split")
    report_to: list[Literal["tensorboard"]] = Field(
        ["tensorboard"], description="loggers besides metrics.jsonl"
    )


class KernelsGroup(_Group):
    """Fast paths of training; each is exact, and false runs its reference instead."""

    loss: bool = Field(True, description="head and loss in pieces, never all logits at once")
    lora: bool = Field(True, description="frozen layer and adapter in one function")
    attention: bool = Field(True, description="packed rows one by one, not under a common mask")
    norm: bool = Field(True, description="RMS norm that keeps its input only")
    gated: bool = Field(True, description="SwiGLU and GeGLU that keep their inputs only")
    rotary: bool = Field(True, description="rotary embeddings that keep nothing")


class EvaluateGroup(_Group):
    """How `luthier evaluate` compares base and tuned."""

    metrics: list[str] = Field(
        ["exact_match", "rouge_l", "chrf"],
        description=f"of the generated answers: {', '.join(METRICS)}, or a .py file with "
        "score(answer, row); accuracy joins by itself where the references form a label set",
    )
    max_rows: int = Field(100, ge=0, description="held-out rows to generate answers for; 0: none")
    max_new_tokens: int = Field(256, ge=1, description="longest generated answer, in tokens")
    batch_size: int = Field(16, ge=1, description="answers generated at once")
    sql_databases: str | None = Field(
        None, description="folder of <name>.sql/.sqlite that rows name in their 'database' field"
    )
    json_schema: str | None = Field(None, description="file of the JSON schema answers must meet")
    judge_model: str | None = Field(None, description="model that grades answers for metric judge")
    judge_url: str = Field(
        "https://api.openai.com/v1", description="its endpoint, any that speaks OpenAI's protocol"
    )
    judge_key_env: str = Field(
        "OPENAI_API_KEY", description="environment variable that holds its key"
    )

    probe: bool = Field(
        True, description="ask general questions too: a few while training, all in luthier evaluate"
    )
    max_accuracy_drop: float = Field(
        0.05, gt=0, le=1, description="share of general questions lost beyond which a run forgot"
    )
    max_perplexity_ratio: float = Field(
        1.5, gt=1, description="tuned over base, on general text, beyond which a run forgot"
    )
    max_leakage: float = Field(
        0.1, gt=0, le=1, description="share of unrelated answers in the training format, likewise"
    )

    @field_validator("metrics")
    @classmethod
    def _known_metrics(cls, names: list[str]) -> list[str]:
        for name in names:
            if name not in METRICS and not name.endswith(".py"):
                near = difflib.get_close_matches(name, METRICS, n=1)
                hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(METRICS)}"
                raise ValueError(f"no metric '{name}'; {hint}")
        return list(dict.fromkeys(names))

    @model_validator(mode="after")
    def _metrics_have_what_they_need(self) -> "EvaluateGroup":
        for metric, key in _NEEDED_BY_METRIC.items():
            if metric in self.metrics and getattr(self, key) is None:
                raise ValueError(f"evaluate.metrics {metric} needs evaluate.{key}")
        return self


class RunGroup(_Group):
    """Where the run folder goes."""

    name: str | None = Field(None, description="folder name; None: made from the recipe")
    dir: str = Field("runs", description="folder that holds the runs")


class Recipe(_Group):
    """Everything about a run. ``provenance`` is written by `luthier train`, never read back."""

    model: ModelGroup
    method: MethodGroup = Field(default_factory=MethodGroup)
    data: DataGroup
    train: TrainGroup = Field(default_factory=TrainGroup)
    kernels: KernelsGroup = Field(default_factory=KernelsGroup)
    evaluate: EvaluateGroup = Field(default_factory=EvaluateGroup)
    run: RunGroup = Field(default_factory=RunGroup)
    provenance: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _fill_method_defaults(self) -> "Recipe":
        for key, value in METHOD_DEFAULTS[self.method.name].items():
            if getattr(self.train, key) is None:
                setattr(self.train, key, value)
        return self

    @model_validator(mode="after")
    def _check_together(self) -> "Recipe":
        name = self.run.name
        if name is not None and (name in {"", ".", ".."} or "/" in name or "\\" in name):
            raise ValueError("run.name must be a plain folder name, without slashes")
        held_out = self.data.validation is not None or self.data.validation_fraction > 0
        for key in ("early_stopping_patience", "stop_on_forgetting"):
            if getattr(self.train, key) is not None and not held_out:
                raise ValueError(f"train.{key} needs a validation set")
        if self.train.stop_on_forgetting is not None and not self.evaluate.probe:
            raise ValueError("train.stop_on_forgetting needs evaluate.probe")
        train = self.train
        if train.optim == "adamw_bf16" and self.method.name != "full":
            raise ValueError("train.optim adamw_bf16 is for method.name full; adapters are small")
        if train.optim == "adamw_bf16" and self.model.dtype not in ("auto", "bfloat16"):
            raise ValueError(
                "train.optim adamw_bf16 computes in bfloat16: leave model.dtype at auto"
            )
        if train.optimizer_in_backward and (
            train.gradient_accumulation_steps > 1 or train.max_grad_norm > 0
        ):
            raise ValueError(
                "train.optimizer_in_backward keeps no gradients to add up or to clip: set "
                "train.gradient_accumulation_steps=1 and train.max_grad_norm=0"
            )
        return self

    @property
    def train_files(self) -> list[str]:
        """The training sources as a list."""
        return [self.data.train] if isinstance(self.data.train, str) else self.data.train

    def with_absolute_paths(self) -> "Recipe":
        """A copy that means the same from any working folder."""
        full = self.model_copy(deep=True)
        if user_path(self.model.source).exists():
            full.model.source = _absolute(self.model.source)
        full.data.train = [_absolute_data(source) for source in self.train_files]
        if self.data.validation is not None:
            full.data.validation = _absolute_data(self.data.validation)
        if full.data.replay is not None:
            full.data.replay.source = _absolute_data(full.data.replay.source)
        if self.evaluate.sql_databases is not None:
            full.evaluate.sql_databases = _absolute(self.evaluate.sql_databases)
        if self.evaluate.json_schema is not None:
            full.evaluate.json_schema = _absolute(self.evaluate.json_schema)
        full.evaluate.metrics = [
            _absolute(name) if name.endswith(".py") else name for name in self.evaluate.metrics
        ]
        return full

    def settings(self) -> dict[str, Any]:
        """What the run depends on: everything but its place and its provenance."""
        return self.model_dump(exclude={"run", "provenance"})

    def differences(self, other: "Recipe") -> list[str]:
        """Keys whose values differ from ``other``, as ``key: mine -> theirs`` lines."""
        mine, theirs = dict(_flatten(self.settings())), dict(_flatten(other.settings()))
        # A group that one of them leaves out (data.replay) has keys on one side only.
        return [
            f"{key}: {mine.get(key)} -> {theirs.get(key)}"
            for key in {**mine, **theirs}
            if mine.get(key) != theirs.get(key)
        ]

    def default_name(self, stem: str) -> str:
        """A run name that the same recipe always gets again, so that it resumes."""
        text = json.dumps(self.settings(), sort_keys=True)
        return f"{stem}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"

    def to_yaml(self) -> str:
        """The recipe as YAML, keys in the order of the groups above."""
        return yaml.safe_dump(_without_defaults_of_none(self), sort_keys=False, allow_unicode=True)


def _without_defaults_of_none(group: BaseModel) -> dict[str, Any]:
    """All keys but those that are None by default; one that was set to None has to be told."""
    told: dict[str, Any] = {}
    for name, field in type(group).model_fields.items():
        value = getattr(group, name)
        if value is not None or field.get_default(call_default_factory=True) is not None:
            told[name] = _without_defaults_of_none(value) if isinstance(value, BaseModel) else value
    return told


def _absolute(path: str) -> str:
    return str(user_path(path).resolve())


def _absolute_data(source: str) -> str:
    return source if hub_dataset(source) is not None else _absolute(source)


_HUB_DATASET = re.compile(r"(?P<id>[\w-][\w.-]*/[\w.-]+)(?::(?P<split>[\w./-]+))?")
_DATA_FILE = re.compile(r"\.(jsonl|json|csv|parquet)(\.gz|\.zst)?$", re.IGNORECASE)


def hub_dataset(source: str) -> tuple[str, str | None] | None:
    """(id, split) where a data source names a dataset on the hub, None where it is a path here."""
    match = _HUB_DATASET.fullmatch(source)
    if match is None or _DATA_FILE.search(source) or Path(source).exists():
        return None
    return match["id"], match["split"]


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file and apply ``group.key=value`` overrides.

    Raises:
        UserError: the file is missing, is not YAML, or a key or value is wrong; the message names
            each one and, for an unknown key, the nearest known one.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"no recipe at {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the recipe {path}: {error}") from error
    return parse_recipe(text, overrides, origin=str(path))


def parse_recipe(text: str, overrides: Sequence[str] = (), origin: str = "recipe") -> Recipe:
    """Like ``load_recipe``, from YAML text; ``origin`` names it in messages."""
    tree = parse_yaml(text, origin)
    if tree is None:
        tree = {}
    if not isinstance(tree, dict):
        raise UserError(f"{origin}: a recipe is a mapping of groups: {', '.join(_groups())}")
    for override in overrides:
        _apply(tree, override)
    try:
        recipe = Recipe.model_validate(tree)
    except ValidationError as error:
        lines = [_explain(dict(issue)) for issue in error.errors()]
        raise UserError(f"{origin}: " + "\n".join(lines)) from None
    for key, value in _flatten(recipe.settings()):
        if holds_secret(str(value)):
            raise UserError(
                f"{origin}: '{key}' holds a password or token, which would be kept in every run; take "
                "it out and log in with `hf auth login`"
            )
    return recipe


def _apply(tree: dict[Any, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    path = key.strip().split(".")
    if not equals or len(path) != 2 or not all(path):
        raise UserError(f"--set takes group.key=value (train.learning_rate=1e-4), not '{override}'")
    parsed = parse_yaml(value, f"--set {key}")
    group = tree.setdefault(path[0], {})
    if group is None:
        group = tree[path[0]] = {}
    if not isinstance(group, dict):
        raise UserError(f"--set {key}: '{path[0]}' is not a group of keys in this recipe")
    group[path[1]] = parsed


def _explain(issue: dict[str, Any]) -> str:
    """One line for one of Pydantic's findings."""
    # Members of a union add steps to the location that mean nothing to a reader.
    where = ".".join(str(step) for step in issue["loc"][:2])
    if issue["type"] == "extra_forbidden":
        return f"unknown key '{where}'{_nearest(where)}"
    if issue["type"] == "missing":
        return f"'{where}' is missing"
    message = issue["msg"].removeprefix("Value error, ")
    if not where:
        return message
    given = masked(repr(issue["input"]))
    given = given if len(given) <= _SHOWN else given[:_SHOWN] + " …"
    return f"'{where}' is {given}: {message[0].lower()}{message[1:]}"


def _nearest(where: str) -> str:
    known = list(known_keys())
    leaf = where.rpartition(".")[2]
    same_leaf = [key for key in known if key.rpartition(".")[2] == leaf]
    near = same_leaf or difflib.get_close_matches(where, known + list(_groups()), n=1, cutoff=0.6)
    if not near:
        leaves = {key.rpartition(".")[2]: key for key in known}
        near = [leaves[name] for name in difflib.get_close_matches(leaf, leaves, n=1, cutoff=0.6)]
    return f"; did you mean '{near[0]}'?" if near else f"; groups are {', '.join(_groups())}"


def _groups() -> Iterator[str]:
    return (name for name in Recipe.model_fields if name != "provenance")


def known_keys() -> Iterator[str]:
    """Every key a recipe may hold, as ``group.key``."""
    for name in _groups():
        annotation = Recipe.model_fields[name].annotation
        assert isinstance(annotation, type) and issubclass(annotation, BaseModel)
        yield from (f"{name}.{key}" for key in annotation.model_fields)


def _flatten(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
