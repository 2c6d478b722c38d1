"""The group `objective`, and what differs between the objectives."""

from typing import Any, Literal

from pydantic import Field, model_validator

from luthier.recipe.groups.group import Group

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
