"""`luthier board`."""

import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from luthier.cli.app import app, out
from luthier.errors import UserError
from luthier.extras import need

_RESULTS = ("comparison", "sweeps")


@app.command()
def board(
    runs: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder of the runs; it is made if need be.")
    ] = Path("runs"),
    data: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR",
            help="Folder with data or models that the board may read; may be repeated. Without it, "
            "data are uploaded and models named.",
        ),
    ] = None,
    results: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR",
            help="Folder that is, or holds, comparisons or sweeps; may be repeated. Default: "
            "comparison and sweeps beside the runs, where the commands put them.",
        ),
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 picks a free one.")] = 8600,
    open_browser: Annotated[
        bool, typer.Option("--open/--no-open", help="Open the page in the browser.")
    ] = False,
) -> None:
    """Show runs, comparisons and sweeps in the browser; start, stop and resume runs; chat.

    The board listens on this machine alone, and its address holds a token: who has the address may do
    what you may do here. On a server, reach it through `ssh -L 8600:127.0.0.1:8600 HOST`. Runs that
    it starts are processes of their own: they go on when the browser or the board is closed, and the
    next board finds them. Ctrl-C ends the board.

    Example: `luthier board --runs runs --data my-data`
    """
    need("nicegui", extra="board", what="luthier board")
    from luthier.api import bind
    from luthier.board.folders import Folders
    from luthier.board.server import serve

    for option, given in (("--data", data), ("--results", results)):
        for folder in given or []:
            if not folder.is_dir():
                raise UserError(f"{option} {folder}: there is no such folder")
    try:
        runs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--runs {runs}: {error.strerror or error}") from error
    root = runs.resolve()
    places = results if results is not None else [root.parent / name for name in _RESULTS]
    folders = Folders(
        root,
        tuple(folder.resolve() for folder in data or []),
        tuple(folder.resolve() for folder in places),
    )

    def ready(address: str) -> None:
        out.print(f"the board is at {address}", highlight=False, soft_wrap=True, markup=False)
        out.file.flush()  # a pipe would buffer it
        if open_browser:
            webbrowser.open(address)

    serve(folders, bind("127.0.0.1", port), ready)
