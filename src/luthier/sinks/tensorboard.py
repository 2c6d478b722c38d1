"""Curves for TensorBoard, in ``tensorboard/``."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from luthier.events import Evaluation, Event, OnEvent, Started, Step
from luthier.run import Run


class _TensorBoard:
    """Writes each figure as a scalar, under ``train/`` or ``eval/`` as Transformers names them."""

    name = "TensorBoard"

    def __init__(self, run: Run) -> None:
        self.run = run
        self.writer: Any = None

    def __call__(self, event: Event) -> None:
        if isinstance(event, Started):
            from torch.utils.tensorboard import SummaryWriter

            # Points that a killed run drew after its last checkpoint are drawn again.
            folder = str(self.run.tensorboard_path)
            self.writer = SummaryWriter(folder, purge_step=event.step + 1 if event.step else None)
        elif isinstance(event, Step | Evaluation):
            for name, value in event.line.to_dict().items():
                if name != "step":
                    tag = f"eval/{name[5:]}" if name.startswith("eval_") else f"train/{name}"
                    self.writer.add_scalar(tag, value, event.line.step)
            self.writer.flush()

    def close(self) -> None:
        if self.writer is not None:
            with suppress(OSError):  # it was told when it first happened
                self.writer.close()


@contextmanager
def tensorboard(run: Run) -> Iterator[OnEvent]:
    """The sink of TensorBoard's files."""
    sink = _TensorBoard(run)
    before = threading.excepthook

    def hook(found: threading.ExceptHookArgs) -> None:
        # Its thread prints the traceback of an error that it raises in ours, too.
        if not type(found.thread).__module__.startswith("tensorboard."):
            before(found)

    threading.excepthook = hook
    try:
        yield sink
    finally:
        sink.close()
        threading.excepthook = before
