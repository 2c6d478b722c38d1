"""metrics.jsonl and events.jsonl."""

import json
from dataclasses import fields
from datetime import datetime
from pathlib import Path
from typing import Any

from luthier.credentials import masked
from luthier.events import Evaluation, Event, Progress, Started, Step
from luthier.files import write_text
from luthier.records import Record
from luthier.run import Run
from luthier.sinks.growing import GrowingFile


class MetricsFile:
    """Keeps training steps and evaluations in metrics.jsonl."""

    name = "metrics.jsonl"

    def __init__(self, run: Run) -> None:
        self.run = run
        self.file = GrowingFile(run, run.metrics_path)

    def __call__(self, event: Event) -> None:
        if isinstance(event, Started):
            self.forget_after(event.step)
        elif isinstance(event, Step | Evaluation):
            self.file.add(json.dumps(event.line.to_dict(), ensure_ascii=False))

    def forget_after(self, step: int) -> None:
        """Drop the lines after ``step``, all of them where a run starts over, and an incomplete line.

        A run that was killed had continued past its last checkpoint; those steps are taken again.
        """
        kept = []
        if step > 0 and self.run.metrics_path.is_file():
            for text in self.run.metrics_path.read_text(encoding="utf-8").splitlines():
                try:
                    if json.loads(text)["step"] > step:
                        break
                except ValueError:  # the line that the kill cut off
                    break
                kept.append(text + "\n")
        self.file.forget_waiting()
        write_text(self.run.metrics_path, "".join(kept))


class EventsFile:
    """Writes every event except progress to events.jsonl, with the time."""

    name = "events.jsonl"

    def __init__(self, run: Run) -> None:
        self.file = GrowingFile(run, run.events_path)

    def __call__(self, event: Event) -> None:
        if isinstance(event, Progress):
            return
        told = {
            "event": type(event).__name__.lower(),
            "time": datetime.now().astimezone().isoformat(timespec="milliseconds"),
            **{field.name: _plain(getattr(event, field.name)) for field in fields(event)},
        }
        self.file.add(json.dumps(told, ensure_ascii=False))


def _plain(value: Any) -> Any:
    if isinstance(value, Record):
        return value.to_dict()
    return masked(str(value)) if isinstance(value, str | Path) else value
