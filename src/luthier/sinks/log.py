"""log.txt: what a run and the libraries said while it trained."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import MemoryHandler

from luthier.credentials import masked
from luthier.events import Checkpoint, Evaluation, Event, Finished, Note, OnEvent, Started, Step
from luthier.records import MetricsLine
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
        text = _as_text(event)
        if text is not None:
            warns = isinstance(event, Note) and event.warning
            _log.log(logging.WARNING if warns else logging.INFO, text)


def _as_text(event: Event) -> str | None:
    match event:
        case Note(text=text):
            return text
        case Started(step=step, total=total):
            return f"training from step {step} of {total}"
        case Step(line=line) | Evaluation(line=line):
            return _figures(line)
        case Checkpoint(step=step, path=path, best=best):
            return f"checkpoint of step {step}{', the best so far' if best else ''}: {path}"
        case Finished(measured=measured):
            return f"finished: step {measured.best_step} of {measured.steps} is kept"
    return None


def _figures(line: MetricsLine) -> str:
    shown = {k: v for k, v in line.to_dict().items() if k not in ("step", "epoch", "seconds")}
    return f"step {line.step}: " + ", ".join(f"{name} {value:.6g}" for name, value in shown.items())


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
