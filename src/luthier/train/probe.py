"""A general probe while training: has the model begun to forget?

What it asks is not this part's concern; the command line hands in who does (``evaluate.probe``).
"""

from typing import Any, Protocol

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from transformers.trainer_callback import ExportableState


class Probe(Protocol):
    """Measures general skill: shares and losses by name, ``probe_accuracy`` among them."""

    def __call__(
        self, model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase
    ) -> dict[str, float]: ...


class ForgettingWatch(TrainerCallback, ExportableState):
    """Remembers the accuracy before the first step and whether it has fallen past ``limit``.

    A callback because its state then travels in checkpoints, so that a resumed run stops where an
    uninterrupted one would.
    """

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.start: float | None = None
        self.forgot = False

    def take(self, accuracy: float) -> None:
        """Note one measurement, the first being that of the untouched model."""
        if self.start is None:
            self.start = accuracy
        self.forgot = self.start - accuracy > self.limit

    def state(self) -> dict[str, Any]:
        return {
            "args": {"limit": self.limit},
            "attributes": {"start": self.start, "forgot": self.forgot},
        }
