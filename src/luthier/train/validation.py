"""What a run measures of itself on the way: the loss of rows it does not train on, and the probe."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from luthier.data.batches import by_length
from luthier.data.tokens import TokenRow
from luthier.events import OnEvent
from luthier.objectives.objective import CROSS_ENTROPY, Objective, sums_over
from luthier.perplexity import perplexity
from luthier.train.processes import Processes
from luthier.train.sharded import cut_again


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

    Each of several processes has its share of the batches; the probe is rank 0's.

    With ``in_parts`` the model runs equally often in all, as one must that is cut into parts: the others
    ask the probe, too.

    ``together`` rows in a row are one of ``batch_size``: 2 for pairs, whose loss is no perplexity's.
    """

    objective: Objective
    rows: Sequence[TokenRow]
    batch_size: int
    probe: Callable[[], dict[str, float]] | None
    on_event: OnEvent
    together: int = 1
    processes: Processes = field(default_factory=Processes)
    in_parts: bool = False

    def measure(self, model: nn.Module, step: int) -> dict[str, float]:
        """Figures by the names of metrics.jsonl; before the first step those of the probe alone."""
        figures: dict[str, float] = {}
        if step > 0:
            means = self._means(model)
            figures["eval_loss"] = means.pop("loss")
            if self.together == 1:  # of distillation, whose loss is another, the part that is one
                nats = means.get(CROSS_ENTROPY, figures["eval_loss"])
                figures["eval_perplexity"] = perplexity(nats)
            figures |= {f"eval_{name}": value for name, value in means.items()}
        probe = self.probe
        if probe is not None:
            asked = probe() if self.in_parts else None
            found = self.processes.from_first(lambda: asked or probe())
            figures |= {f"eval_{name}": value for name, value in found.items()}
        if self.in_parts:
            cut_again(model)
        return figures

    def _means(self, model: nn.Module) -> dict[str, float]:
        groups = by_length(self.rows, self.batch_size, self.together)
        own = groups[self.processes.rank :: self.processes.size]
        mine = sums_over(self.objective, model, own, self.on_event)
        if self.in_parts and len(own) * self.processes.size < len(groups):
            sums_over(self.objective, model, groups[:1])  # counts nothing
        found = self.processes.gathered(mine)
        return sum(found[1:], found[0]).means()
