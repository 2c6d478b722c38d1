"""log.txt: what a run and the libraries said while it trained."""

import logging
from contextlib import suppress

from luthier.credentials import masked
from luthier.events import (
    Checkpoint,
    Evaluation,
    Event,
    Finished,
    Note,
    Started,
    Step,
    Stopped,
)
from luthier.records import MetricsLine
from luthier.run import Run
from luthier.sinks.growing import GrowingFile

_LOGGERS = ("luthier", "transformers", "accelerate")


class RunLog:
    """Events as lines with time and level, and what the libraries log meanwhile."""

    name = "log.txt"

    def __init__(self, run: Run) -> None:
        self.file = GrowingFile(run, run.log_path)
        self.form = logging.Formatter("%(asctime)s %(levelname)s %(message)s")
        self.handler = _Listener(self)
        for name in _LOGGERS:
            logging.getLogger(name).addHandler(self.handler)

    def __call__(self, event: Event) -> None:
        text = _as_text(event)
        if text is not None:
            level = logging.INFO
            if isinstance(event, Stopped) and not event.interrupted:
                level = logging.ERROR
            elif isinstance(event, Note) and event.warning:
                level = logging.WARNING
            self.write(logging.LogRecord("luthier", level, "", 0, text, None, None))

    def write(self, record: logging.LogRecord) -> None:
        """Add a line, without tokens and passwords.

        Raises:
            OSError: it could not be written now; it will be with the next one.
        """
        self.file.add(masked(self.form.format(record)))

    def close(self) -> None:
        """Listen to the libraries no more."""
        for name in _LOGGERS:
            logging.getLogger(name).removeHandler(self.handler)


class _Listener(logging.Handler):
    def __init__(self, log: RunLog) -> None:
        super().__init__()
        self.log = log

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):  # the next event finds it too, and can tell it
            self.log.write(record)


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
        case Stopped(reason=reason, interrupted=interrupted):
            return reason if interrupted else f"ended by an error: {reason}"
    return None


def _figures(line: MetricsLine) -> str:
    shown = {k: v for k, v in line.to_dict().items() if k not in ("step", "epoch", "seconds")}
    return f"step {line.step}: " + ", ".join(f"{name} {value:.6g}" for name, value in shown.items())
