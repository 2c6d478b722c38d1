"""Base against tuned, as measured: ``evaluation.json`` and ``evaluation/rows.jsonl``."""

from typing import Any, Generic, Literal, TypeVar

from pydantic import Field

from luthier.records.record import Record

T = TypeVar("T")

Verdict = Literal["better", "no evidence", "worse"]
Judgement = Literal["kept", "some forgetting", "forgot"]
Winner = Literal["base", "tie", "tuned"]


class Pair(Record, Generic[T]):
    """Something of both sides."""

    base: T
    tuned: T


class Interval(Record):
    """A mean over ``rows`` and the interval that holds the true one with ``confidence``."""

    mean: float
    low: float
    high: float
    rows: int
    confidence: float


class Outcome(Record):
    """What a paired test says of the second side.

    Attributes:
        p: how often chance alone gives a difference this large, either way.
    """

    p: float
    rows: int
    verdict: Verdict


class PairedTest(Outcome):
    """What changed from the first side to the second on the same rows.

    Attributes:
        difference: mean of second less first; ``low`` and ``high`` are its interval.
    """

    difference: float
    low: float
    high: float
    confidence: float


class Ratio(Record):
    """The second side over the first, and its interval."""

    ratio: float
    low: float
    high: float


class Compared(Record):
    """The means of both sides, and the test of the pair."""

    base: Interval
    tuned: Interval
    test: PairedTest


class MetricCompared(Compared):
    """A metric of both sides.

    Attributes:
        label: for people.
        share: whether it is a share between 0 and 1.
        corpus: the score of all answers together, where the field reports that.
    """

    label: str
    share: bool
    higher_is_better: bool
    corpus: Pair[float] | None = None


class PerplexityCompared(Record):
    """Perplexity of both sides. It changes by a ratio; the test is that of the loss."""

    label: str
    share: bool
    higher_is_better: bool
    base: Interval
    tuned: Interval
    ratio: Ratio
    test: Outcome


AnyCompared = MetricCompared | PerplexityCompared


class Confusion(Record):
    """Which label was answered for which.

    Attributes:
        labels: the label set, the most frequent first.
        counts: (labels, labels + 1) rows by reference and answer; the last column is of answers
            that name no label, or several.
        recall, precision, f1: one per label; 0 where the divisor is 0.
        macro_f1: mean of ``f1``.
    """

    labels: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    precision: tuple[float, ...]
    recall: tuple[float, ...]
    f1: tuple[float, ...]
    macro_f1: float


class Leak(Record):
    """One answer that leaks the training format, and why."""

    question: str
    base: str
    tuned: str
    kind: Literal["template", "copy", "style"]
    why: str


class Leakage(Compared):
    """Share of unrelated answers that leak, of each side, and the tuned side's leaks.

    Attributes:
        style_told_apart: share of held-out training answers and prose that the style classifier
            gets right, the lesser of the two; None where there were too few training answers.
        style_counts: whether that was enough for style to be judged.
    """

    style_told_apart: float | None
    style_counts: bool
    leaks: tuple[Leak, ...]


class TextCompared(Record):
    """Both sides on general prose."""

    loss: MetricCompared
    perplexity: PerplexityCompared


class ProbeFindings(Record):
    """What the probe of general skill measured on both sides.

    Attributes:
        items: how many there were, unrelated questions included.
        accuracy: over all scored items; ``areas``: by area.
        kl: mean KL(base || tuned) in nats per token of the base's own answers; None without any.
        seconds: by side.
    """

    items: int
    accuracy: Compared
    areas: dict[str, Compared]
    text: TextCompared
    kl: Interval | None
    leakage: Leakage
    seconds: dict[str, float]


class Limits(Record):
    """Beyond these a run forgot: keys of the recipe's ``evaluate`` group."""

    max_accuracy_drop: float
    max_perplexity_ratio: float
    max_leakage: float


class Remedy(Record):
    """One thing to try: ``what`` to do, ``why`` it helps, and ``how`` to tell Luthier."""

    what: str
    why: str
    how: str


class Forgetting(ProbeFindings):
    """What the tuned model forgot: the measurements, and the verdict by the recipe's limits."""

    verdict: Judgement
    reasons: tuple[str, ...]
    limits: Limits
    remedies: list[Remedy]


class PreferenceFindings(Record):
    """What held-out pairs of a better and a worse answer show.

    Attributes:
        accuracy: share of pairs whose chosen answer has the higher reward, with Wilson's interval.
        margin: mean reward of chosen answers less that of rejected ones.
        chosen, rejected: mean rewards: log p_tuned - log p_base of an answer, or a reward model's.
        lengths: characters of the generated answers of both sides; None without any.
    """

    pairs: int
    accuracy: Interval
    margin: Interval
    chosen: Interval
    rejected: Interval
    lengths: Compared | None


class ScoredPair(Record):
    """What a reward model makes of one pair, a line of ``evaluation/pairs.jsonl``.

    Attributes:
        row: file and line.
        chosen, rejected: the rewards.
    """

    row: str
    chosen: float
    rejected: float

    @property
    def is_right(self) -> bool:
        """Whether the chosen answer has the higher reward."""
        return self.chosen > self.rejected


class WinRate(Record):
    """How often one judge finds the tuned model's answer better than the base's to the same prompt.

    Attributes:
        judge: who said so.
        wins, ties, losses: rows, of the tuned model.
        rate: share of rows that it wins, a tie counting half, with Wilson's interval, which is a
            little wide where there are ties.
        swayed: rows where a judge that was asked in both orders said otherwise in the other order;
            they are among the ties. None for a judge that is asked once.
        longer: of rows with a winner, how often that was the longer answer; None without any.
        test: against no preference.
    """

    judge: str
    wins: int
    ties: int
    losses: int
    rate: Interval
    swayed: int | None
    longer: Interval | None
    test: Outcome


class Wins(Record):
    """Generated answers of the tuned model against those of the base.

    Attributes:
        rates: by judge.
        lengths: of both, in characters.
    """

    rates: tuple[WinRate, ...]
    lengths: Compared


class AnsweredRow(Record):
    """One answered row, a line of ``evaluation/rows.jsonl``: both answers, and their scores.

    Attributes:
        row: file and line.
        messages: the prompt.
        scores: by metric.
        winner: whose answer is the better one, by judge; None where nobody was asked.
    """

    row: str
    messages: list[dict[str, Any]]
    reference: str
    base: str
    tuned: str
    scores: Pair[dict[str, float]]
    winner: dict[str, Winner] | None = None


class Evaluation(Record):
    """Base against tuned on rows outside the training set: ``evaluation.json``.

    Attributes:
        data: where the rows are from.
        seen_in_training: how many rows are in the training set, by their prompts.
        base, tuned: ``loss`` (nats per supervised token), ``perplexity``, and the mean of each metric.
        metrics: the same with intervals and the paired test, by name.
        classification: None where the references form no label set.
        forgetting: None where it was not measured.
        preference: None where no row is a pair.
        wins: None where nobody was asked whose answers are better.
        tasks: those of lm-eval, by task and metric.
        samples: the first answered rows; all of them are in ``evaluation/rows.jsonl``.
        when: ISO 8601, UTC.
    """

    data: str
    rows: int
    seen_in_training: int
    supervised_tokens: int
    answered_rows: int
    adapter_scale: float
    base: dict[str, float]
    tuned: dict[str, float]
    metrics: dict[str, AnyCompared]
    classification: Pair[Confusion] | None
    samples: list[AnsweredRow]
    forgetting: Forgetting | None
    preference: PreferenceFindings | None = None
    wins: Wins | None = None
    tasks: dict[str, MetricCompared] = Field(default_factory=dict)
    max_new_tokens: int
    seconds: float
    when: str
