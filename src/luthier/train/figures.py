"""The results of steps, and the means of those since the last line of metrics.jsonl."""

import statistics
from dataclasses import dataclass, field

from luthier.objectives.objective import divided


@dataclass(frozen=True, slots=True)
class StepResult:
    """The results of a step over all processes.

    Attributes:
        loss: mean over all that the objective counted.
        grad_norm: before clipping.
        learning_rate: that the update was made with.
        tokens: that went through the model.
        parts: further means that the objective names.
        skipped: loss or gradient was non-finite, so no weight changed.
    """

    loss: float
    grad_norm: float
    learning_rate: float
    tokens: int
    parts: dict[str, float]
    skipped: bool


@dataclass
class Window:
    """The steps since the last line of metrics.jsonl."""

    steps: list[StepResult] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, result: StepResult, seconds: float) -> None:
        self.steps.append(result)
        self.seconds += seconds

    def take(self) -> dict[str, float]:
        """Means over the steps that counted, and how many were skipped; the window is empty then."""
        counted = [step for step in self.steps if not step.skipped]
        figures: dict[str, float] = {}
        if len(counted) < len(self.steps):
            figures["skipped"] = len(self.steps) - len(counted)
        if counted:
            last = self.steps[-1]
            figures["loss"] = statistics.fmean(step.loss for step in counted)
            if not last.skipped:
                figures["grad_norm"] = last.grad_norm
            figures["learning_rate"] = last.learning_rate
            tokens = sum(step.tokens for step in self.steps)
            figures["tokens_per_second"] = round(tokens / max(self.seconds, 1e-9), 1)
            means = {
                name: statistics.fmean(step.parts[name] for step in counted)
                for name in counted[0].parts
            }
            figures |= divided(means)
        self.steps, self.seconds = [], 0.0
        return figures
