"""The option `--trust`, and the question that stands for it in a terminal."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from luthier.cli.app import err
from luthier.run import Run, open_run
from luthier.trust import Untrusted

Trust = Annotated[
    bool,
    typer.Option(
        "--trust",
        help="Trust what the run of someone else asks for (code, files, addresses), from now on.",
    ),
]


def open_trusted(path: Path, trust: bool, *, to_train: bool = False) -> Run:
    """The run at ``path``, trusted: see ``trusted``.

    Raises:
        UserError: there is no run folder there.
        Untrusted: the run needs consent that was not given.
    """
    return trusted(open_run(path), trust, to_train=to_train)


def trusted(run: Run, trust: bool, *, to_train: bool = False) -> Run:
    """``run``; in a terminal a person is asked once whether to trust it.

    Args:
        to_train: also what only training acts on.

    Raises:
        Untrusted: the run needs consent that was not given.
    """
    if trust:
        run.trust(to_train=to_train)
    try:
        run.require_trust(to_train=to_train)
    except Untrusted as untrusted:
        if not (sys.stdin.isatty() and err.is_terminal):
            raise
        told = f"{run.root} was not trained here by you. It asks for:"
        err.print(told, markup=False, highlight=False)
        err.print(untrusted.asks, markup=False, highlight=False, soft_wrap=True)
        if not typer.confirm("Do you trust it?", err=True):
            raise
        run.trust(to_train=to_train)
    return run
