"""log.txt: all that was said while a run trained, ours and the libraries'."""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from logging.handlers import MemoryHandler
from pathlib import Path

from luthier.credentials import masked

# Apart from the other loggers: what goes here was shown on the display already.
run_log = logging.getLogger("luthier.run_log")
run_log.propagate = False
run_log.setLevel(logging.INFO)


class _Masking(logging.Formatter):
    """Keeps tokens and passwords out of what is written."""

    def format(self, record: logging.LogRecord) -> str:
        return masked(super().format(record))


@contextmanager
def logging_to_run() -> Iterator[Callable[[Path], None]]:
    """Hold records back until the yielded function is told the file, which exists only then."""
    memory = MemoryHandler(capacity=10_000, flushLevel=logging.CRITICAL + 1)
    loggers = [run_log, logging.getLogger("transformers"), logging.getLogger("accelerate")]
    for logger in loggers:
        logger.addHandler(memory)

    def write_to(path: Path) -> None:
        file = logging.FileHandler(path, encoding="utf-8")
        file.setFormatter(_Masking("%(asctime)s %(levelname)s %(message)s"))
        if memory.target is not None:  # the run begins anew
            memory.target.close()
        memory.setTarget(file)
        memory.capacity = 0  # from now on each record is written as it comes
        memory.flush()

    try:
        yield write_to
    except BaseException as error:
        run_log.error("ended by %s: %s", type(error).__name__, error)
        raise
    finally:
        for logger in loggers:
            logger.removeHandler(memory)
        target = memory.target
        memory.close()
        if target is not None:
            target.close()


@contextmanager
def writers_errors_told_once() -> Iterator[None]:
    """TensorBoard's thread prints the traceback of an error that it raises in ours, too."""
    before = threading.excepthook

    def hook(found: threading.ExceptHookArgs) -> None:
        if not type(found.thread).__module__.startswith("tensorboard."):
            before(found)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before
