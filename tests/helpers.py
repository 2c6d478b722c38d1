"""Plain functions that several tests use."""

import json
import random
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from luthier.data.conversation import Conversation, Origin
from luthier.data.tokens import TokenRow
from luthier.events import Event, Note
from luthier.run import Run

Cli = Callable[..., subprocess.CompletedProcess[str]]


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read_metrics(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.metrics_path.read_text("utf-8").splitlines()]


class Notes:
    """A listener that keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    @property
    def notes(self) -> list[str]:
        return [event.text for event in self.events if isinstance(event, Note)]

    @property
    def warnings(self) -> list[str]:
        return [event.text for event in self.events if isinstance(event, Note) and event.warning]


def random_rows(count: int, seed: int = 0, vocabulary: int = 96) -> list[TokenRow]:
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        length = draw.randint(4, 24)
        ids = [draw.randrange(vocabulary) for _ in range(length)]
        mask = [False] + [draw.random() < 0.4 for _ in range(length - 2)] + [True]
        rows.append(TokenRow(ids, mask, Conversation(Origin("f", 1), text="x")))
    return rows


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """The gradients of ``loss``, of all that train."""
    model.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def wait_for_step(run: Run, step: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if run.metrics_path.is_file() and f'"step": {step},' in run.metrics_path.read_text():
            return
        time.sleep(0.02)
    raise AssertionError(f"no step {step} within two minutes")
