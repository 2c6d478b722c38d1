"""log.txt: what a run and the libraries said while it trained."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import MemoryHandler

from luthier.credentials import masked
from luthier.events import Event, Note, OnEvent, Progress
from luthier.run import Run

# Apart from the other loggers: the terminal shows these things in its own way.
_log = logging.getLogger("luthier.run_log")
_log.propagate = False
_log.setLevel(logging.INFO)


class _Masking(logging.Formatter):
    """Keeps tokens and passwords out of what is written."""

    def format(self, record: logging.LogRecord) -> str:
        return masked(super().format(record))


class _RunLog:
    """Holds records back until the run folder is a run, which a mistake in the recipe prevents."""

    name = "log.txt"

    def __init__(self, run: Run) -> None:
        self.run = run
        self.memory = MemoryHandler(capacity=10_000, flushLevel=logging.CRITICAL + 1)

    def __call__(self, event: Event) -> None:
        if self.memory.target is None and self.run.recipe_path.is_file():
            file = logging.FileHandler(self.run.log_path, encoding="utf-8")
            file.setFormatter(_Masking("%(asctime)s %(levelname)s %(message)s"))
            self.memory.setTarget(file)
            self.memory.capacity = 0  # from now on each record is written as it comes
        if isinstance(event, Note):
            _log.log(logging.WARNING if event.warning else logging.INFO, "%s", event.text)
        elif not isinstance(event, Progress):
            _log.info("%s", event)


@contextmanager
def logging_to(run: Run) -> Iterator[OnEvent]:
    """The sink of log.txt; what the libraries log meanwhile goes there too."""
    sink = _RunLog(run)
    loggers = [_log, logging.getLogger("transformers"), logging.getLogger("accelerate")]
    for logger in loggers:
        logger.addHandler(sink.memory)
    try:
        yield sink
    except BaseException as error:
        _log.error("ended by %s: %s", type(error).__name__, error)
        raise
    finally:
        for logger in loggers:
            logger.removeHandler(sink.memory)
        target = sink.memory.target
        sink.memory.close()
        if target is not None:
            target.close()
