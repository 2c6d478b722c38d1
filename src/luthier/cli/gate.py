"""`luthier gate`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from luthier.cli.app import Json, app, out, print_json
from luthier.errors import UserError
from luthier.run import open_run

Conditions = list[str] | None


@app.command()
def gate(
    run_path: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")],
    least: Annotated[
        Conditions,
        typer.Option(
            "--min", metavar="METRIC=VALUE", help="Least value of a metric; may be repeated."
        ),
    ] = None,
    most: Annotated[
        Conditions,
        typer.Option(
            "--max", metavar="METRIC=VALUE", help="Greatest value, as of loss or perplexity."
        ),
    ] = None,
    better: Annotated[
        Conditions,
        typer.Option(metavar="METRIC", help="Must be significantly better; may be repeated."),
    ] = None,
    max_forgetting: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Most that accuracy on general questions may fall (0.05)."),
    ] = None,
    max_leakage: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Largest share of unrelated answers in training format."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Check an evaluated run against thresholds, for CI; exits with 1 if it falls short.

    It reads the run's `evaluation.json`, so run `luthier evaluate` first. Shares are between 0 and
    1.

    Example: `luthier gate runs/first --better loss --min chrf=0.3 --max-forgetting 0.05`
    """
    run = open_run(run_path)
    from luthier.api import check_gate

    evaluation = run.evaluation()
    if evaluation is None:
        raise UserError(
            f"{run.root} has not been evaluated; run `luthier evaluate {run.root}` first"
        )
    checks = check_gate(
        evaluation,
        least=least or (),
        most=most or (),
        better=better or (),
        max_forgetting=max_forgetting,
        max_leakage=max_leakage,
    )
    passed = all(check.passed for check in checks)
    if as_json:
        print_json({"passed": passed, "checks": [check.to_json() for check in checks]})
    else:
        table = Table("", "measured", "required", "")
        for check in checks:
            word = "[green]passes[/]" if check.passed else "[bold red]falls short[/]"
            table.add_row(check.what, check.found, check.wanted, word)
        out.print(table)
        failed = [check.what for check in checks if not check.passed]
        out.print(f"falls short: {', '.join(failed)}" if failed else "passes", highlight=False)
    raise typer.Exit(0 if passed else 1)
