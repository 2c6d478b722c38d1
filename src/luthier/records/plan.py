"""What a run will take: ``plan.json``, and the result of `luthier plan`."""

from luthier.records.record import Record

Range = tuple[float, float]  # the least and the most


class Memory(Record):
    """Bytes at the peak of a run.

    Attributes:
        parts: what is there, by what it is for; ``temporary`` is what of the peak is none of the
            others. Not all of them are there at once: ``peak`` is less than their sum.
        phases: most bytes alive in each phase of a step, ``framework`` included.
        framework: what is there before the first tensor.
    """

    parts: dict[str, int]
    phases: dict[str, int]
    framework: int
    peak: int


class Work(Record):
    """Operations of a run; ``by_rule`` are those of the common rule of 6N (full) or 4N per token.

    The rule ignores attention, adapters and recomputation; N counts the weights of all matrix
    products, the head included.
    """

    tokens: int
    steps: int
    flops: float
    flops_per_token: float
    attention_share: float
    by_rule: float


class Plan(Record):
    """What a run will take on a device. Times and what follows from them are None where unknown.

    Attributes:
        seconds, cost, energy: least and most; equal where they come from a calibration. US dollars,
            kilowatt-hours.
        basis: what the times rest on.
        reference: where the log-probabilities of a preference's reference model come from, or what a
            teacher takes.
    """

    model: str
    method: str
    dtype: str
    optim: str
    gradient_checkpointing: bool
    rows: int
    gradient_accumulation_steps: int
    largest_batch_tokens: int
    trainable_parameters: int
    total_parameters: int
    device: str
    device_bytes: int
    fits: bool
    memory: Memory
    work: Work
    seconds: Range | None
    tokens_per_second: Range | None
    cost: Range | None
    energy: Range | None
    basis: str
    reference: str | None = None

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights and adapter."""
        return self.memory.parts["weights"] + self.memory.parts["adapter"]
