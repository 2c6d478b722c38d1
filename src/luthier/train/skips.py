"""Steps whose loss or gradient is no number: left out, counted, and after a few the end of the run."""

from typing import Any

from torch import Tensor

from luthier.data.batches import RowDataset

# One bad batch must not end a night's run; several in a row mean that the weights are lost.
_IN_A_ROW = 3
_IN_ALL, _SHARE = 10, 0.01


class Skips:
    """What the trainer keeps of the step it is in, and how many were left out.

    Attributes:
        batches: the micro-batches of the step, as ``collate`` made them.
        total: steps left out in this session.
    """

    def __init__(self) -> None:
        self.batches: list[dict[str, Any]] = []
        self.total = 0
        self._in_a_row = self._steps = self._skipped = 0
        self._taken_back = False
        self._loss: Tensor | None = None

    def begin(self, batches: list[dict[str, Any]], loss: Tensor) -> None:
        """A step begins; ``loss`` is the sum since the last log, without it."""
        if not self._taken_back:
            self._in_a_row = 0
        self._taken_back = False
        self.batches = batches
        self._loss = loss.clone()
        self._steps += 1

    def take_back(self) -> Tensor:
        """Leave out the step that goes on; the sum of losses without it."""
        assert self._loss is not None
        self.total += 1
        self._in_a_row += 1
        self._skipped += 1
        self._taken_back = True
        return self._loss

    @property
    def left_out(self) -> bool:
        """Whether the last step was."""
        return self._taken_back

    def too_many(self, max_steps: int) -> bool:
        return self._in_a_row >= _IN_A_ROW or self.total > max(_IN_ALL, _SHARE * max_steps)

    def correct(self, logs: dict[str, Any]) -> None:
        """Make ``loss``, a mean over all steps since the last log, one over those that counted."""
        steps, skipped = self._steps, self._skipped
        self._steps = self._skipped = 0
        if not skipped:
            return
        logs["skipped"] = skipped
        if self._taken_back:  # the norm is that of the last step
            logs.pop("grad_norm", None)
        if skipped < steps:
            logs["loss"] *= steps / (steps - skipped)
        else:
            del logs["loss"]


def batch_rows(batches: list[dict[str, Any]], data: RowDataset) -> list[dict[str, Any]]:
    """The rows of ``batches`` with their places, to look at."""
    rows = {tuple(row.input_ids): row for item in data.items for row in item}
    found = []
    for batch in batches:
        tokens = batch["input_ids"][0].tolist()
        for length in batch["row_lengths"]:
            ids, tokens = tokens[:length], tokens[length:]
            row = rows.get(tuple(ids))
            content = row.conversation.to_row() if row is not None else {}
            found.append({**content, "input_ids": ids})
    return found
