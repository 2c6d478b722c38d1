"""A run and the model it began from, asked the same questions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from luthier.data.conversation import Conversation
from luthier.evaluate.store import Store
from luthier.events import OnEvent
from luthier.generate.answer import Model
from luthier.models.tuned import TunedModel
from luthier.recipe import Recipe
from luthier.run import Run

T = TypeVar("T")


@dataclass(frozen=True)
class Rows:
    """What is evaluated: all rows for the loss, a sample of them for answers."""

    source: str
    all: Sequence[Conversation]
    answered: list[Conversation]


@dataclass(frozen=True)
class Examination:
    """What every part of an evaluation needs.

    Attributes:
        recipe: of ``run``, with the metrics that are asked for.
        names: by side, what an answer depends on besides its prompt: the weights, and their scale.
        store: keeps answers, so that none is made twice.
        base_kept: whether those of the base are kept for other runs, see ``base_answers.py``.
    """

    run: Run
    recipe: Recipe
    rows: Rows
    models: TunedModel
    names: dict[str, str]
    store: Store
    base_kept: bool
    on_event: OnEvent

    def of_both(self, measure: Callable[[str, Model], T]) -> tuple[T, T]:
        """``measure(side, model)`` of the base, then of the tuned model."""
        with self.models.as_base() as model:
            base = measure("base", model)
        return base, measure("tuned", self.models.tuned)
