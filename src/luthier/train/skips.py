"""Steps whose loss or gradient is non-finite: skipped, counted, and after a few the end of the run."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from luthier.data.batches import Batch
from luthier.data.tokens import TokenRow
from luthier.errors import UserError
from luthier.files import write_json
from luthier.records import BadBatch
from luthier.run import Run
from luthier.train.processes import Processes

# One bad batch must not end a night's run; several in a row mean that the weights are ruined.
_IN_A_ROW = 3
_IN_ALL, _SHARE = 10, 0.01


class NonFinite(Exception):
    """The loss of a step is NaN or infinite, and cannot be skipped."""

    def __init__(self, loss: float) -> None:
        super().__init__(f"loss {loss}")
        self.loss = loss


@dataclass
class Skips:
    """How many steps of this session were skipped, and what to say when there are too many.

    Attributes:
        rows: those that the last step may have come from, to show those of a bad batch.
        last: whether the last step was skipped.
    """

    run: Run
    rows: Callable[[], Iterable[TokenRow]]
    learning_rate: float
    processes: Processes = field(default_factory=Processes)
    total: int = 0
    last: bool = field(default=False, init=False)
    _in_a_row: int = field(default=0, init=False)

    def take(self, skipped: bool) -> None:
        """Note whether a step was skipped."""
        self.last = skipped
        self._in_a_row = self._in_a_row + 1 if skipped else 0
        self.total += skipped

    def too_many(self, max_steps: int) -> bool:
        return self._in_a_row >= _IN_A_ROW or self.total > max(_IN_ALL, _SHARE * max_steps)

    def diverged(
        self, step: int, loss: float, grad_norm: float | None, batches: Sequence[Batch]
    ) -> UserError:
        """The error that ends the run; the rows of ``batches`` are written to bad-batch.json.

        So are those of the other processes, which all come here.
        """
        path = self.run.bad_batch_path
        own = [row for batch in batches if not batch.idle for row in self._shown(batch)]
        rows = [row for rows in self.processes.gathered(own) for row in rows]
        bad = BadBatch(step=step, loss=repr(loss), grad_norm=repr(grad_norm), rows=rows)
        self.processes.from_first(lambda: write_json(path, bad.to_dict()))
        said = f"training diverged at step {step}: loss {loss}"
        if grad_norm is not None:
            said += f", gradient norm {grad_norm}"
        if self.total > 1:
            said += f", and {self.total - 1} earlier steps were skipped for the same reason"
        return UserError(
            f"{said}; the rows of this step are in {path}. Look at them, or lower "
            f"train.learning_rate (now {self.learning_rate:g})"
        )

    def _shown(self, batch: Batch) -> list[dict[str, Any]]:
        asked = set(batch.origins)
        by_origin = {row.origin: row.conversation for row in self.rows() if row.origin in asked}
        return [
            {**by_origin[origin].to_row(), "input_ids": row.input_ids[0].tolist()}
            for origin, row in zip(batch.origins, batch.rows(), strict=True)
        ]
