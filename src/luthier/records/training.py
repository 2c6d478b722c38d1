"""What training writes: provenance, metrics, measured resources, and a batch on which it diverged."""

import datetime
from typing import Any

from pydantic import ConfigDict, Field

from luthier.records.record import Record


class Provenance(Record):
    """What a recipe became in this run: ``provenance.json``.

    Attributes:
        versions: of Python, Luthier and the libraries that compute.
        dtype: of frozen weights and of the arithmetic, as in ``torch.bfloat16`` without ``torch.``.
        substitutes: sentences that say where the machine made the run differ from the recipe.
        model: where the weights came from.
        template: name of the chat template; ``none`` for plain text.
        template_date: the day that it writes; None where it reads no clock.
        data_sha256: hash of each source file that was read whole.
        micro_batch: rows per micro-batch where ``train.auto_batch`` had to lower it.
        processes: that trained together at first, where they were several.
    """

    versions: dict[str, str]
    device: str
    dtype: str
    substitutes: list[str] = Field(default_factory=list)
    model: str
    template: str
    template_sha256: str
    template_date: datetime.date | None = None
    data_sha256: dict[str, str]
    micro_batch: int | None = None
    processes: int | None = None

    @property
    def learned_turns(self) -> bool:
        """Whether the run was trained on conversations, by a chat template; False for plain text."""
        return self.template != "none"


class MetricsLine(Record):
    """One line of ``metrics.jsonl``: a training step or an evaluation at one.

    Attributes:
        loss: mean over the steps since the last line, in nats per supervised token.
        grad_norm: of the last of them, before clipping.
        tokens: that went through the model in training so far, prompts included.
        rows_read: of the sources of a stream so far.
        skipped: steps since the last line whose loss or gradient was non-finite.
        eval_loss: nats per supervised token of the validation rows.
        memory_bytes: the most that the process has held.
        seconds: of the run so far, all its sessions together.

    What an objective or the probe measures besides is in further keys of its own (``extra``).
    """

    model_config = ConfigDict(extra="allow")

    step: int
    epoch: float
    skipped: int | None = None
    loss: float | None = None
    grad_norm: float | None = None
    learning_rate: float | None = None
    tokens_per_second: float | None = None
    tokens: int | None = None
    rows_read: int | None = None
    eval_loss: float | None = None
    eval_perplexity: float | None = None
    eval_probe_accuracy: float | None = None
    eval_probe_loss: float | None = None
    memory_bytes: int
    seconds: float

    @property
    def extra(self) -> dict[str, float]:
        """Measured values without a field of their own."""
        return dict(self.model_extra or {})


class Measured(Record):
    """What a finished run took, and how it ended: ``measured.json``.

    Attributes:
        best_step: step whose weights were kept: the lowest validation loss, or the last step
            where there is no validation set.
        best_eval_loss: nats per supervised token; None without a validation set.
        forgot: stopped because the probe fell (``train.stop_on_forgetting``).
        tokens: all tokens that went through the model in training, prompts included.
        plan_errors: planned over measured, less one, for what plan.json predicted.
    """

    steps: int
    best_step: int
    best_eval_loss: float | None
    best_eval_perplexity: float | None
    stopped_early: bool
    seconds: float
    tokens: int
    tokens_per_second: float
    peak_memory_bytes: int
    trainable_parameters: int
    total_parameters: int
    device: str
    dtype: str
    weights: str
    plan_errors: dict[str, float] | None = None
    forgot: bool = False


class BadBatch(Record):
    """The rows of the step at which training diverged: ``bad-batch.json``.

    Attributes:
        loss, grad_norm: as Python writes them, since JSON has no NaN; ``None`` where the gradient
            was not computed.
        rows: as in ``data/train.jsonl``, each with its ``input_ids``.
    """

    step: int
    loss: str
    grad_norm: str
    rows: list[dict[str, Any]]
