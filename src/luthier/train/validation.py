"""What a run measures of itself on the way: the loss of rows it does not train on, and the probe."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from luthier.data.tokens import TokenRow
from luthier.events import OnEvent
from luthier.objectives.objective import CROSS_ENTROPY, Objective, mean_over
from luthier.perplexity import perplexity


class Probe(Protocol):
    """Measures general skill: shares and losses by name, ``probe_accuracy`` among them.

    What it asks is not this part's concern; who calls ``fit`` hands it in (``evaluate.probe``).
    """

    def __call__(
        self, model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase
    ) -> dict[str, float]: ...


@dataclass(frozen=True)
class Validation:
    """The mean over all that counts in ``rows``, and what the probe finds.

    ``together`` rows in a row are one of ``batch_size``: 2 for pairs, whose loss is no perplexity's.
    """

    objective: Objective
    rows: Sequence[TokenRow]
    batch_size: int
    probe: Callable[[], dict[str, float]] | None
    on_event: OnEvent
    together: int = 1

    def measure(self, model: nn.Module, step: int) -> dict[str, float]:
        """Figures by the names of metrics.jsonl; before the first step those of the probe alone."""
        figures: dict[str, float] = {}
        if step > 0:
            means = mean_over(
                self.objective, model, self.rows, self.batch_size, self.on_event, self.together
            )
            figures["eval_loss"] = means.pop("loss")
            if self.together == 1:  # of distillation, whose loss is another, the part that is one
                nats = means.get(CROSS_ENTROPY, figures["eval_loss"])
                figures["eval_perplexity"] = perplexity(nats)
            figures |= {f"eval_{name}": value for name, value in means.items()}
        if self.probe is not None:
            figures |= {f"eval_{name}": value for name, value in self.probe().items()}
        return figures
