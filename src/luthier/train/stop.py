"""Stopping on request: the step that runs is finished and saved first."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from luthier.events import Note, OnEvent


@dataclass
class StopRequest:
    """``requested`` by the first Ctrl-C (or SIGTERM); a second one stops at once.

    ``granted`` once a checkpoint of that moment is written.
    """

    requested: bool = False
    granted: bool = False

    @contextmanager
    def listening(self, on_event: OnEvent) -> Iterator[None]:
        """Take over the signals, where this thread may."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def handle(_number: int, _frame: Any) -> None:
            if self.requested:
                raise KeyboardInterrupt
            self.requested = True
            on_event(
                Note(
                    "the run will stop after this step and save a checkpoint; press Ctrl-C again to stop at once"
                )
            )

        before = {
            number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
