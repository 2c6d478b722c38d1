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
    """Write a run's report, `report.html`, from the files in its folder.

    One self-contained page: what improved and by how much, what was forgotten, answers side by side,
    curves, plan against measurement, and how to reproduce it. `luthier evaluate` writes it too; this
    writes it again, also for a run that has not been evaluated.

    Example: `luthier report runs/first`
    """
    from luthier.api import write_report

    path = write_report(open_run(run_path))
    if as_json:
        print_json({"report": str(path)})
    else:
        out.print(f"report written to {path}", highlight=False, soft_wrap=True)
