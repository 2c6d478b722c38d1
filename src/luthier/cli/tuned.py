"""The run, or the adapter of another tool, that a command works on."""

from pathlib import Path
from typing import Annotated

import typer

from luthier.api import find_run
from luthier.cli.terminal import terminal
from luthier.run import Run

BaseModel = Annotated[
    str | None,
    typer.Option(
        "--base-model",
        metavar="MODEL",
        help="For a PEFT folder of another tool: its base, where it does not say or that is gone.",
    ),
]


def open_tuned(path: Path, base_model: str | None) -> Run:
    """The run at ``path``, or the PEFT folder there as one.

    Raises:
        UserError: it is neither.
    """
    with terminal() as on_event:
        return find_run(path, base_model, on_event)
