"""The run, or the adapter of another tool, that a command works on."""

from pathlib import Path
from typing import Annotated

import typer

from luthier.api import find_run
from luthier.cli.terminal import terminal
from luthier.cli.trusting import trusted
from luthier.run import Run

BaseModel = Annotated[
    str | None,
    typer.Option(
        "--base-model",
        metavar="MODEL",
        help="For a PEFT folder of another tool: its base, where it does not say or that is gone.",
    ),
]


def open_tuned(path: Path, base_model: str | None, trust: bool) -> Run:
    """The run at ``path``, or the PEFT folder there as one, trusted.

    Raises:
        UserError: it is neither.
        Untrusted: the run needs consent that was not given.
    """
    with terminal() as on_event:
        run = find_run(path, base_model, on_event=on_event)
    return trusted(run, trust)
