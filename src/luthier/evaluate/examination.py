"""A run and the model it began from, asked the same questions."""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

from luthier.data.conversation import Conversation
from luthier.data.tokens import TokenRow
from luthier.evaluate.base_answers import find_answers, keep_answers
from luthier.evaluate.likelihood import RowLoss, row_losses
from luthier.evaluate.store import Store, key_of
from luthier.events import Note, OnEvent
from luthier.generate.answer import Model
from luthier.kernels.separation import rows_stay_apart
from luthier.models.tuned import TunedModel
from luthier.recipe import Recipe
from luthier.run import Run

T = TypeVar("T")
Loaded = Callable[[], Model]  # loads it where it must


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

    def of_both(self, measure: Callable[[str, Loaded], T]) -> tuple[T, T]:
        """``measure(side, model)`` of the base, then of the tuned model."""
        with ExitStack() as stack:
            base = measure("base", cache(lambda: stack.enter_context(self.models.as_base())))
        return base, measure("tuned", lambda: self.models.tuned)

    def once(
        self,
        side: str,
        model: Loaded,
        task: str,
        asked: Iterable[bytes],
        measure: Callable[[Model], list[Any]],
    ) -> list[Any]:
        """``measure(model)``, lists of numbers; of the base, what an earlier evaluation measured.

        Args:
            task: what this is, in the events.
            asked: all that decides the numbers besides the model, in order.
        """
        if side != "base" or not self.base_kept:
            return measure(model())
        digest = hashlib.sha256()
        for each in asked:
            digest.update(len(each).to_bytes(8, "big") + each)
        key = key_of(self.names["base"], task, digest.hexdigest())
        found = find_answers([key])
        if found:
            self.on_event(Note(f"{task}: kept from an earlier evaluation"))
            return list(json.loads(found[key]))
        values = measure(model())
        keep_answers({key: json.dumps(values)})
        return values

    def losses(
        self, side: str, model: Loaded, rows: Sequence[TokenRow], task: str
    ) -> list[RowLoss]:
        """Those of ``row_losses``."""

        def measure(loaded: Model) -> list[tuple[float, int]]:
            packed = rows_stay_apart(loaded)
            found = row_losses(loaded, rows, packed=packed, task=task, on_event=self.on_event)
            return [(loss.sum, loss.tokens) for loss in found]

        asked = (part.tobytes() for row in rows for part in row.arrays)
        return [RowLoss(*pair) for pair in self.once(side, model, task, asked, measure)]
