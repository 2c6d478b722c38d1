"""Curves for TensorBoard, in ``tensorboard/``."""

import threading
from contextlib import suppress
from typing import Any

from luthier.events import Evaluation, Event, Started, Step
from luthier.recipe import Recipe
from luthier.run import Run
from luthier.sinks.scalars import scalars


class TensorBoard:
    """Writes each figure as a scalar of its step."""

    name = "TensorBoard"

    def __init__(self, _recipe: Recipe, run: Run) -> None:
        self.run = run
        self.writer: Any = None
        before = self.excepthook = threading.excepthook

        def hook(found: threading.ExceptHookArgs) -> None:
            # Its thread prints the traceback of an error that it raises in ours, too.
            if not type(found.thread).__module__.startswith("tensorboard."):
                before(found)

        threading.excepthook = hook

    def __call__(self, event: Event) -> None:
        if isinstance(event, Started):
            from torch.utils.tensorboard import SummaryWriter

            self._close_writer()  # of a session that ran out of memory
            # Points that a killed run drew after its last checkpoint are drawn again.
            again_from = event.step + 1 if event.step else 0
            self.writer = SummaryWriter(str(self.run.tensorboard_path), purge_step=again_from)
        elif isinstance(event, Step | Evaluation) and self.writer is not None:
            for tag, value in scalars(event).items():
                self.writer.add_scalar(tag, value, event.line.step)
            self.writer.flush()

    def close(self) -> None:
        """End the file."""
        self._close_writer()
        threading.excepthook = self.excepthook

    def _close_writer(self) -> None:
        if self.writer is not None:
            with suppress(OSError):  # it was reported when it first happened
                self.writer.close()
