"""`luthier report`."""

from pathlib import Path
from typing import Annotated

import typer

from luthier.cli.app import Json, app, out, print_json
from luthier.run import open_run


@app.command()
def report(
    run_path: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")],
    as_json: Json = False,
) -> None:
    """Write a run's page, `report.html`, from what its folder holds.

    One file that needs nothing else: is it better and by how much, what it forgot, answers side by
    side, curves, plan against measured, how to make it again. `luthier evaluate` writes it too;
    this makes it anew, also for a run that is not evaluated yet.

    Example: `luthier report runs/first`
    """
    from luthier.api import write_report

    path = write_report(open_run(run_path))
    if as_json:
        print_json({"report": str(path)})
    else:
        out.print(f"written: {path}", highlight=False, soft_wrap=True)
