"""Plain functions that several tests use."""

import json
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from luthier.run import Run

Cli = Callable[..., subprocess.CompletedProcess[str]]


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read_metrics(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.metrics_path.read_text("utf-8").splitlines()]


class Notes:
    """A display that keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.lines: list[dict[str, Any]] = []

    def begin(self, step: int, total: int) -> None: ...
    def end(self) -> None: ...

    def logged(self, line: dict[str, Any]) -> None:
        self.lines.append(line)

    def note(self, text: str) -> None:
        self.notes.append(text)
