"""log.txt: what a run and the libraries logged while it trained."""

import logging
from contextlib import suppress

from luthier.credentials import masked
from luthier.events import Event, Note, Progress, Stopped
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
        if isinstance(event, Progress):
            return
        level, text = logging.INFO, str(event)
        if isinstance(event, Note):  # the level says that it is a warning
            level, text = logging.WARNING if event.warning else logging.INFO, event.text
        elif isinstance(event, Stopped) and not event.interrupted:
            level = logging.ERROR
        self.write(logging.LogRecord("luthier", level, "", 0, text, None, None))

    def write(self, record: logging.LogRecord) -> None:
        """Add a line, without tokens and passwords.

        Raises:
            OSError: it could not be written now; it will be with the next one.
        """
        self.file.add(masked(self.form.format(record)))

    def close(self) -> None:
        """Stop listening to the libraries."""
        for name in _LOGGERS:
            logging.getLogger(name).removeHandler(self.handler)


class _Listener(logging.Handler):
    def __init__(self, log: RunLog) -> None:
        super().__init__()
        self.log = log

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):  # the next event finds it too, and can tell it
            self.log.write(record)
