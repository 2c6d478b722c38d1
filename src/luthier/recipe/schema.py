"""A recipe: its groups together, and what must fit together."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from pydantic import (
    BaseModel,
    Field,
    ValidationError,
    model_validator,
)

from luthier.credentials import holds_secret
from luthier.errors import UserError
from luthier.files import user_path
from luthier.recipe.changes import Changes, merge
from luthier.recipe.groups.data import STREAM_HELD_OUT, DataGroup
from luthier.recipe.groups.evaluate import METRICS, EvaluateGroup
from luthier.recipe.groups.group import Group
from luthier.recipe.groups.kernels import KernelsGroup
from luthier.recipe.groups.method import METHOD_DEFAULTS, MethodGroup
from luthier.recipe.groups.model import ModelGroup
from luthier.recipe.groups.objective import (
    OBJECTIVES,
    PREFERENCE_DEFAULTS,
    PREFERENCE_RATES,
    ObjectiveGroup,
)
from luthier.recipe.groups.run import RunGroup
from luthier.recipe.groups.train import REPORTS, WARMUP_RATIO, TrainGroup
from luthier.recipe.messages import explain_errors
from luthier.recipe.names import check_names
from luthier.recipe.schedules import check_phases, check_schedule
from luthier.recipe.sources import absolute_path, absolute_source


class Recipe(Group):
    """A recipe of Luthier: everything about a run."""

    model: ModelGroup
    method: MethodGroup = Field(default_factory=MethodGroup)
    data: DataGroup
    objective: ObjectiveGroup = Field(default_factory=ObjectiveGroup)
    train: TrainGroup = Field(default_factory=TrainGroup)
    kernels: KernelsGroup = Field(default_factory=KernelsGroup)
    evaluate: EvaluateGroup = Field(default_factory=EvaluateGroup)
    run: RunGroup = Field(default_factory=RunGroup)

    @classmethod
    def from_tree(cls, tree: Mapping[Any, Any], origin: str) -> "Recipe":
        """The recipe of plain values, checked; ``origin`` names it in messages.

        Raises:
            UserError: a key or value is wrong, each told in a line of its own, or holds a secret.
        """
        try:
            recipe = cls.model_validate(tree)
        except ValidationError as error:
            told = explain_errors(error, list(known_keys()), list(groups()))
            raise UserError(f"{origin}: {told}") from None
        for key, value in _flatten(recipe.settings()):
            if holds_secret(str(value)):
                raise UserError(
                    f"{origin}: '{key}' holds a password or token, which would be kept in every run; "
                    "take it out and log in with `hf auth login`"
                )
        return recipe

    def changed(self, /, **changes: Mapping[str, Any]) -> "Recipe":
        """This recipe with other values, checked as one that is read from a file.

        ``recipe.changed(train={"max_steps": 3}, method={"name": "full"})``. What was never set
        follows the method: its learning rate, weight decay and optimiser. In the recipe of a run
        folder everything is set.

        Args:
            changes: keys and values by group; None where a key has a default by method sets it back
                to that.

        Raises:
            UserError: an unknown group or key, or a wrong value.
        """
        recipe = Recipe.from_tree(merge(given(self), changes, "recipe"), "recipe")
        recipe.check_names("recipe", changes)
        return recipe

    def check_names(self, origin: str, changes: Changes | None = None) -> None:
        """Refuse metrics, objectives and sinks that are neither built in nor installed as plugins.

        It is asked of recipes that people give, not of those in run folders: who serves a run need
        not have what it was measured and watched with.

        Args:
            changes: look at what they change alone.

        Raises:
            UserError: ``origin`` and the key are named, and the nearest known name.
        """

        def chosen(group: str, key: str) -> list[str]:
            if changes is not None and key not in changes.get(group, {}):
                return []
            names: str | list[str] = getattr(getattr(self, group), key)
            return [names] if isinstance(names, str) else names

        metrics = [name for name in chosen("evaluate", "metrics") if not name.endswith(".py")]
        check_names(f"{origin}: 'evaluate.metrics'", "metric", metrics, METRICS, "luthier.metrics")
        learned = chosen("objective", "name")
        check_names(
            f"{origin}: 'objective.name'", "objective", learned, OBJECTIVES, "luthier.objectives"
        )
        sinks = chosen("train", "report_to")
        check_names(f"{origin}: 'train.report_to'", "sink", sinks, REPORTS, "luthier.sinks")

    @model_validator(mode="after")
    def _fill_method_defaults(self) -> "Recipe":
        usual = METHOD_DEFAULTS[self.method.name]
        rates = PREFERENCE_RATES.get(self.objective.name)
        if rates is not None:
            usual = usual | {"learning_rate": rates[self.method.name]}
        filled = {key: value for key, value in usual.items() if getattr(self.train, key) is None}
        # A copy that does not count them as set: they follow when the method changes.
        self.train = TrainGroup.model_construct(
            _fields_set=self.train.model_fields_set - filled.keys(), **dict(self.train) | filled
        )
        return self

    @model_validator(mode="after")
    def _check_preference(self) -> "Recipe":
        name = self.objective.name
        if name not in PREFERENCE_DEFAULTS:
            return self
        if self.data.train_on != "completions":
            raise ValueError(
                f"data.train_on all is not for the objective {name}, which compares answers"
            )
        if name == "reward" and self.train.stop_on_forgetting is not None:
            raise ValueError(
                "train.stop_on_forgetting asks the model questions, which a reward model cannot answer"
            )
        if name == "reward" and self.model.adapter is not None:
            raise ValueError(
                "model.adapter goes on with a model that writes, and a reward model scores: merge that "
                "run (`luthier merge`) and give the merged folder as model.source"
            )
        if self.data.replay is not None:
            raise ValueError(f"data.replay is for the objective sft, not for {name}")
        if self.objective.precompute_ref_log_probs is False and self.method.name == "full":
            raise ValueError(
                "objective.precompute_ref_log_probs false needs an adapter that can be switched off: "
                "full fine-tuning keeps the reference's log-probabilities, which gives the same "
                "numbers without a second model in memory"
            )
        # No dropout: noise in the model but not in the reference is noise in the reward (TRL's
        # disable_dropout). A copy that does not count as set.
        if "lora_dropout" not in self.method.model_fields_set:
            self.method = self.method.model_copy(update={"lora_dropout": 0.0})
            self.method.model_fields_set.discard("lora_dropout")
        return self

    @model_validator(mode="after")
    def _choose_warmup(self) -> "Recipe":
        train = self.train  # a copy, see above
        if train.warmup_steps is None:
            if train.warmup_ratio is None:
                train.warmup_ratio = WARMUP_RATIO
        elif train.warmup_ratio is not None:
            if "warmup_ratio" in train.model_fields_set:
                raise ValueError(
                    "train.warmup_steps and train.warmup_ratio are both set: take one out, or set "
                    "it to null"
                )
            train.warmup_ratio = None
            train.model_fields_set.discard("warmup_ratio")
        return self

    @model_validator(mode="after")
    def _check_schedule(self) -> "Recipe":
        train = self.train
        assert train.learning_rate is not None  # filled in above
        name, given = train.lr_scheduler_type, train.lr_scheduler_kwargs
        check_schedule(name, given, train.learning_rate)
        if name == "constant" and train.warmup_steps:
            raise ValueError(
                "the schedule constant has no warm-up: for train.warmup_steps set "
                "train.lr_scheduler_type=constant_with_warmup"
            )
        if train.max_steps > 0:
            check_phases(name, given, train.warmup_of(train.max_steps), train.max_steps)
        return self

    @model_validator(mode="after")
    def _check_streaming(self) -> "Recipe":
        data = self.data
        if not data.streaming:
            if data.validation_rows is not None:
                raise ValueError(
                    "data.validation_rows is for data.streaming; data.validation_fraction holds out a "
                    "share of all rows"
                )
            return self
        if self.train.max_steps < 1:
            raise ValueError(
                "data.streaming needs train.max_steps: nobody knows how many rows come, so epochs cannot "
                "be counted in advance, and the learning rate needs an end"
            )
        if data.validation is not None and data.validation_rows is not None:
            raise ValueError(
                "data.validation and data.validation_rows are both set: take one of them out"
            )
        if data.validation_fraction > 0 and "validation_fraction" in data.model_fields_set:
            raise ValueError(
                "data.streaming cannot hold out a share of rows that it does not have: set "
                "data.validation_fraction=0, and data.validation_rows or data.validation in its place"
            )
        for key in ("max_rows", "replay"):
            if getattr(data, key) is not None:
                raise ValueError(
                    f"data.{key} draws from all rows, which data.streaming does not have: take one of "
                    "them out"
                )
        if self.objective.teacher is not None or self.objective.learns_from == "labels":
            raise ValueError(
                f"data.streaming is not for the objective {self.objective.name}, which looks at all rows "
                "before the first step"
            )
        rows = data.validation_rows
        if rows is None and data.validation is None:
            rows = STREAM_HELD_OUT
        # A copy in which they do not count as set.
        self.data = data.model_copy(update={"validation_fraction": 0.0, "validation_rows": rows})
        self.data.model_fields_set.intersection_update(data.model_fields_set)
        return self

    @model_validator(mode="after")
    def _check_together(self) -> "Recipe":
        if self.objective.teacher is not None and self.data.add_tokens:
            raise ValueError(
                "data.add_tokens is not for the objective distill: the teacher does not know new tokens"
            )
        name = self.run.name
        if name is not None and (name in {"", ".", ".."} or "/" in name or "\\" in name):
            raise ValueError("run.name must be a plain folder name, without slashes")
        for key in ("early_stopping_patience", "stop_on_forgetting"):
            if getattr(self.train, key) is not None and not self.has_validation:
                raise ValueError(f"train.{key} needs a validation set")
        if self.train.stop_on_forgetting is not None and not self.evaluate.probe:
            raise ValueError("train.stop_on_forgetting needs evaluate.probe")
        train = self.train
        if train.max_steps == 0:
            raise ValueError("train.max_steps 0 would train nothing; -1 trains by epochs")
        for key in ("eval_steps", "save_steps"):
            steps = getattr(train, key)
            if steps > 1 and steps != int(steps):
                raise ValueError(
                    f"train.{key} {steps:g} must be a whole number, or a share below 1"
                )
        if self.model.adapter is not None and self.method.name == "full":
            raise ValueError(
                "model.adapter is for method.name lora and qlora; for full fine-tuning merge that run "
                "(`luthier merge`) and give the merged folder as model.source"
            )
        if self.model.adapter is not None and self.method.init_lora_weights is not True:
            raise ValueError(
                "method.init_lora_weights is for a new adapter, and model.adapter goes on with one; take "
                "one of them out"
            )
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

    @model_validator(mode="after")
    def _check_fp8_base(self) -> "Recipe":
        if not self.kernels.fp8_base:
            return self
        method, off = self.method, "set kernels.fp8_base=false"
        if method.name != "lora":
            has = {
                "full": "full fine-tuning has no frozen weights",
                "qlora": "qlora keeps them in 4 bits already",
            }[method.name]
            raise ValueError(
                f"kernels.fp8_base keeps the frozen weights of method.name lora in 8 bits, and {has}; {off}"
            )
        if not self.kernels.lora:
            raise ValueError(
                f"kernels.fp8_base is a part of kernels.lora, which is false; set it to true, or {off}"
            )
        if method.use_dora:
            raise ValueError(
                f"kernels.fp8_base is not for method.use_dora, whose layers kernels.lora does not compute; {off}"
            )
        if method.changes_base:
            raise ValueError(
                f"method.init_lora_weights {method.init_lora_weights} takes a part out of the base's weights, "
                f"which kernels.fp8_base keeps in 8 bits; {off}"
            )
        if method.init_lora_weights == "eva":
            raise ValueError(
                "method.init_lora_weights eva has PEFT make the adapter anew beside its base, which it does not "
                f"do beside the 8 bits of kernels.fp8_base; {off}"
            )
        return self

    @property
    def train_files(self) -> list[str]:
        """The training sources as a list."""
        return [self.data.train] if isinstance(self.data.train, str) else self.data.train

    @property
    def has_validation(self) -> bool:
        """Whether rows are held out, given or taken from the training data."""
        data = self.data
        counted = data.validation_rows or 0
        return data.validation is not None or data.validation_fraction > 0 or counted > 0

    @property
    def judge_compares(self) -> bool:
        """Whether evaluate.judge_model is asked which of two generated answers is better."""
        asked = self.evaluate.win_rate
        if asked is None:
            asked = self.objective.learns_from != "answers" and not self.objective.scores
        return asked and self.evaluate.judge_model is not None

    def with_absolute_paths(self) -> "Recipe":
        """A copy that means the same from any working folder."""
        full = self.model_copy(deep=True)
        if user_path(self.model.source).exists():
            full.model.source = absolute_path(self.model.source)
        if self.model.adapter is not None:
            full.model.adapter = absolute_path(self.model.adapter)
        if self.objective.teacher is not None and user_path(self.objective.teacher).exists():
            full.objective.teacher = absolute_path(self.objective.teacher)
        full.data.train = [absolute_source(source) for source in self.train_files]
        if self.data.validation is not None:
            full.data.validation = absolute_source(self.data.validation)
        if full.data.replay is not None:
            full.data.replay.source = absolute_source(full.data.replay.source)
        if self.evaluate.sql_databases is not None:
            full.evaluate.sql_databases = absolute_path(self.evaluate.sql_databases)
        if self.evaluate.json_schema is not None:
            full.evaluate.json_schema = absolute_path(self.evaluate.json_schema)
        if self.evaluate.reward_model is not None:
            full.evaluate.reward_model = absolute_path(self.evaluate.reward_model)
        full.evaluate.metrics = [
            absolute_path(name) if name.endswith(".py") else name for name in self.evaluate.metrics
        ]
        return full

    def settings(self) -> dict[str, Any]:
        """What the run depends on: everything but its place."""
        return self.model_dump(exclude={"run"}, mode="json")

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


def groups() -> Iterator[str]:
    """The names of the groups, in the order of the recipe."""
    return iter(Recipe.model_fields)


def known_keys() -> Iterator[str]:
    """Every key a recipe may hold, as ``group.key``."""
    for name in groups():
        annotation = Recipe.model_fields[name].annotation
        assert isinstance(annotation, type) and issubclass(annotation, BaseModel)
        yield from (f"{name}.{key}" for key in annotation.model_fields)


def _flatten(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def given(group: BaseModel) -> dict[str, Any]:
    """What was set of a recipe or a group, without the defaults; groups are mappings by key."""
    told: dict[str, Any] = {}
    for name in type(group).model_fields:
        value = getattr(group, name)
        if isinstance(value, BaseModel):
            told[name] = given(value)
        elif name in group.model_fields_set:
            told[name] = value
    return told
