"""Variants or approaches side by side: ``comparison.json``, as far as the board shows it."""

from collections.abc import Mapping
from typing import Literal, Self

from pydantic import Field, model_validator

from luthier.records.evaluation import Interval, Judgement, PairedTest
from luthier.records.record import Record


class ComparedMetric(Record):
    """What both sides of a comparison are scored by."""

    name: str
    label: str
    share: bool
    higher_is_better: bool


class VariantForgetting(Record):
    """The worst verdict over a variant's seeds, and the mean change of the probe's accuracy."""

    verdict: Judgement
    accuracy_change: float
    reasons: list[str]


class VariantCurve(Record):
    """(step, nats per token) of the first seed's run."""

    loss: list[tuple[float, float]]
    eval_loss: list[tuple[float, float]]


class ComparedVariant(Record):
    """What one variant reached and took.

    Attributes:
        runs: folders, one a seed.
        scores: by metric.
        share_of_reference: of its mean score by the first metric.
        against_reference: by metric; None of the reference itself.
        cost: US dollars, where a price is known.
    """

    name: str
    learning_rate: float
    runs: list[str]
    scores: dict[str, Interval]
    share_of_reference: float | None
    against_reference: dict[str, PairedTest] | None
    forgetting: VariantForgetting | None
    trainable_parameters: int
    total_parameters: int = Field(gt=0)
    peak_predicted_bytes: float | None
    peak_measured_bytes: float
    seconds: float
    tokens_per_second: float
    weights_bytes: int
    cost: float | None
    curve: VariantCurve


class VariantsCompared(Record):
    """Variants of a recipe, all against ``reference``."""

    kind: Literal["methods"]
    model: str
    data: str
    rows: int
    seen_in_training: int
    seeds: int
    reference: str
    metrics: list[ComparedMetric] = Field(min_length=1)
    base: dict[str, Interval]
    variants: list[ComparedVariant] = Field(min_length=1)
    price_per_hour: float | None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        sides = [v.scores for v in self.variants]
        tests = [v.against_reference for v in self.variants if v.against_reference is not None]
        _need(self.metrics, self.base, *sides, *tests)
        return self


class Latency(Record):
    """Seconds from a question to its complete answer, search included."""

    median: float
    p95: float


class ComparedApproach(Record):
    """What one approach reached and took.

    Attributes:
        against_first: by metric; None of the first itself.
        groups: scores by group of rows and metric.
        prompt_tokens, output_tokens: mean per question.
        cost_per_1000: US dollars for 1,000 questions.
        setup: what had to be made before the first question, in ``setup_seconds``, for
            ``setup_cost`` US dollars.
    """

    name: str
    scores: dict[str, Interval]
    against_first: dict[str, PairedTest] | None
    groups: dict[str, dict[str, Interval]]
    latency: Latency
    prompt_tokens: float
    output_tokens: float
    cost_per_1000: float
    setup: list[str]
    setup_seconds: float
    setup_cost: float


class CheckedRule(Record):
    """What the advisor would have said, and whether the measurements confirm it."""

    of: str
    goals: list[str]
    advised: str
    because: str
    source: str
    better: list[str]
    as_good: list[str]
    verdict: Literal["confirmed", "contradicted", "undecided"]


class ApproachSample(Record):
    """One question with the answers of all approaches."""

    row: str
    question: str
    reference: str
    answers: dict[str, str]
    scores: dict[str, dict[str, float]]
    passages: list[str]


class ApproachesCompared(Record):
    """Approaches to the same questions, all against the first."""

    kind: Literal["approaches"]
    model: str
    data: str
    rows: int
    seen_in_training: int
    by: str | None
    groups: dict[str, int]
    metrics: list[ComparedMetric] = Field(min_length=1)
    approaches: list[ComparedApproach] = Field(min_length=1)
    rules: list[CheckedRule]
    samples: list[ApproachSample]

    @model_validator(mode="after")
    def _whole(self) -> Self:
        tests = [a.against_first for a in self.approaches if a.against_first is not None]
        groups = [a.groups.get(group, {}) for a in self.approaches for group in self.groups]
        _need(self.metrics, *(a.scores for a in self.approaches), *tests, *groups)
        return self


def _need(metrics: list[ComparedMetric], *found: Mapping[str, object]) -> None:
    for metric in metrics:
        if any(metric.name not in scores for scores in found):
            raise ValueError(f"the metric {metric.name} is not everywhere")
