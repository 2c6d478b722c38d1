"""metrics.jsonl and events.jsonl."""

import json
from dataclasses import fields
from datetime import datetime
from pathlib import Path
from typing import Any

from luthier.events import Evaluation, Event, Progress, Started, Step
from luthier.files import write_text
from luthier.records import Record
from luthier.run import Run


class _Lines:
    """A file that grows by a JSON object a line.

    What cannot be written now (a full disk) is kept and written with what comes next, and no half
    line stays in the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.waiting = ""

    def add(self, value: dict[str, Any]) -> None:
        self.waiting += json.dumps(value, ensure_ascii=False) + "\n"
        with self.path.open("ab") as file:
            begin = file.tell()
            try:
                file.write(self.waiting.encode("utf-8"))
                file.flush()
            except OSError:
                file.truncate(begin)
                raise
        self.waiting = ""


class MetricsFile:
    """Keeps training steps and evaluations in metrics.jsonl."""

    name = "metrics.jsonl"

    def __init__(self, run: Run) -> None:
        self.run = run
        self.lines = _Lines(run.metrics_path)

    def __call__(self, event: Event) -> None:
        if isinstance(event, Started):
            self.forget_after(event.step)
        elif isinstance(event, Step | Evaluation):
            self.lines.add(event.line.to_dict())

    def forget_after(self, step: int) -> None:
        """Drop the lines after ``step``, and half a line.

        A run that was killed had gone on past its last checkpoint; those steps are taken again.
        """
        kept = []
        if self.run.metrics_path.is_file():
            for text in self.run.metrics_path.read_text(encoding="utf-8").splitlines():
                try:
                    if json.loads(text)["step"] > step:
                        break
                except ValueError:  # the line that the kill cut off
                    break
                kept.append(text + "\n")
        self.lines.waiting = ""
        write_text(self.run.metrics_path, "".join(kept))


class EventsFile:
    """Keeps all that happens, but for progress, in events.jsonl, with the time."""

    name = "events.jsonl"

    def __init__(self, run: Run) -> None:
        self.run = run
        self.lines = _Lines(run.events_path)

    def __call__(self, event: Event) -> None:
        if isinstance(event, Progress):
            return
        # What comes before the folder is a run is written once it is one.
        told = {
            "event": type(event).__name__.lower(),
            "time": datetime.now().astimezone().isoformat(timespec="milliseconds"),
            **{field.name: _plain(getattr(event, field.name)) for field in fields(event)},
        }
        if not self.run.recipe_path.is_file():
            self.lines.waiting += json.dumps(told, ensure_ascii=False) + "\n"
            return
        self.lines.add(told)


def _plain(value: Any) -> Any:
    if isinstance(value, Record):
        return value.to_dict()
    return str(value) if isinstance(value, Path) else value
