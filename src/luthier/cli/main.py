"""Entry point: run a command, and turn errors into a message and an exit code."""

import logging
import os
import sys
import warnings
from typing import Any

import typer
from rich.logging import RichHandler

from luthier import __version__, runtime
from luthier.cli import (  # noqa: F401  # they register
    advise,
    board,
    chat,
    compare,
    data_check,
    data_files,
    data_fix,
    data_tokenize,
    demo,
    evaluate,
    export,
    gate,
    generate,
    launch,
    merge,
    models,
    plan,
    rag,
    recipe,
    report,
    serve,
    sweep,
    train,
)
from luthier.cli.app import app, err
from luthier.errors import CheckFailed, Interrupted, UserError

# Wrong options and commands; Typer carries its own copy of Click and names only some of its errors.
_UsageError: Any = typer.BadParameter.__bases__[0]


def _print_version(asked: bool) -> None:
    if asked:
        print(f"luthier {__version__}")
        raise typer.Exit


@app.callback()
def options(
    _version: bool = typer.Option(
        False,
        "--version",
        callback=_print_version,
        is_eager=True,  # before a command is asked for
        help="Print the version and exit.",
    ),
    verbose: bool = typer.Option(False, "--verbose", "-v", help="More detail on stderr."),
) -> None:
    handler = RichHandler(console=err, show_path=False, show_time=False, show_level=verbose)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])
    logging.getLogger("luthier").setLevel(logging.DEBUG if verbose else logging.INFO)


def main() -> None:
    """Exit codes: 0 done, 1 a check failed, 2 wrong input, 130 interrupted."""
    runtime.prepare()
    os.environ.setdefault("TQDM_DISABLE", "1")  # progress bars of other libraries would break ours
    # Warnings between libraries are not for the user.
    warnings.filterwarnings("ignore", category=FutureWarning)
    try:
        code = app(standalone_mode=False)
    except UserError as error:
        if _speaks():
            err.print(f"[bold red]error:[/] {_escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(1 if isinstance(error, CheckFailed) else 2)
    except Interrupted as stop:
        if _speaks():
            err.print(str(stop), style="yellow", highlight=False, markup=False, soft_wrap=True)
        sys.exit(130)
    except (KeyboardInterrupt, typer.Abort):
        err.print("interrupted", style="yellow")
        sys.exit(130)
    except _UsageError as error:
        error.show()
        sys.exit(2)
    except BrokenPipeError:
        # The reader (head, say) closed the pipe; nothing is wrong.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    sys.exit(code if isinstance(code, int) else 0)


def _speaks() -> bool:
    """Of processes that train together rank 0 does, for all."""
    return os.environ.get("RANK", "0") == "0"


def _escape(text: str) -> str:
    return text.replace("[", "\\[")


if __name__ == "__main__":
    main()
