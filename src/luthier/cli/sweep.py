"""`luthier sweep`."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Column, Table
from rich.text import Text

from luthier.cli.app import Json, Overrides, app, out, print_json
from luthier.cli.terminal import terminal
from luthier.errors import Interrupted
from luthier.recipe import load_recipe

if TYPE_CHECKING:
    from luthier.records import Sweep


@app.command()
def sweep(
    recipe_path: Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe to improve.")],
    space: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUES",
            help="A key and what it may be: train.learning_rate=1e-5..1e-3:log, "
            "method.lora_r=4,16,64; or a YAML file of them. Repeatable. Default: the learning rate, "
            "and what else matters to the method.",
        ),
    ] = None,
    trials: Annotated[
        int, typer.Option(min=2, help="Runs, the recipe as it is given among them.")
    ] = 20,
    budget_hours: Annotated[
        float | None, typer.Option(min=0, help="Hours that all trials together may take.")
    ] = None,
    budget_cost: Annotated[
        float | None, typer.Option(min=0, help="Or US dollars that they may cost.")
    ] = None,
    price_per_hour: Annotated[
        float | None, typer.Option(min=0, help="US dollars per hour for this machine.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Trials at a time on this machine.")] = 1,
    storage: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Database of Optuna that several machines share; default: SQLite in the folder.",
        ),
    ] = None,
    keep_all: Annotated[
        bool,
        typer.Option(
            "--keep-all", help="Keep the weights of all trials, not of the best and the default."
        ),
    ] = False,
    overrides: Overrides = None,
    folder: Annotated[
        Path | None, typer.Option("--out", help="Folder of the sweep; default: in sweeps/.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Search for better settings of a recipe, and judge the best on rows that took no part in it.

    Trains the recipe as it is given, then trials with other values, which Optuna proposes by what the
    earlier ones reached (TPE). A trial whose validation loss stays above the median of the others is
    stopped on the way. At the end the best is compared with the recipe as it was given, row by row, on
    held-out rows that took no part in choosing it.

    Writes `sweep.json`, `sweep.html` and `best.yaml`, a recipe, into the folder; each trial is a run
    folder in `trials/`. After an interruption the same command goes on; with more `--trials` it goes
    further. Several machines work on one sweep where they are given the same `--storage` and `--out`.

    Example: `luthier sweep recipes/lora.yaml --set data.train=my.jsonl --trials 20 --budget-hours 2`
    """
    from luthier.api import ask_sweep, run_sweep

    try:
        with terminal() as on_event:
            asked = ask_sweep(
                load_recipe(recipe_path, overrides or []),
                recipe_path.stem,
                space=space or [],
                trials=trials,
                out=folder,
                budget_hours=budget_hours,
                budget_cost=budget_cost,
                price_per_hour=price_per_hour,
                storage=storage,
                jobs=jobs,
                keep_all=keep_all,
                on_event=on_event,
            )
            found = run_sweep(asked, on_event)
    except Interrupted as stop:
        again = shlex.join(["luthier", *sys.argv[1:]])
        raise Interrupted(f"{stop}\ngo on with: {again}") from None
    if as_json:
        print_json(found.to_dict())
    else:
        _show(found)


def _show(found: "Sweep") -> None:
    from luthier.api import importance_text, sweep_table, verdict_text

    head, rows = sweep_table(found)
    columns = [Column(name, no_wrap=True) for name in head[:4]]
    table = Table(*columns, "settings", box=SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        # In one column, which wraps: in columns of their own numbers are cut on a narrow terminal.
        settings = ", ".join(f"{key} {value}" for key, value in zip(head[4:], row[4:], strict=True))
        style = "bold" if row[1].startswith("best") else ""
        table.add_row(*map(Text, [*row[:4], settings]), style=style)
    out.print(table)
    out.print(f"ended because {found.ended}", highlight=False, markup=False, soft_wrap=True)
    if found.importance:
        out.print(f"what mattered: {importance_text(found)}", highlight=False, soft_wrap=True)
    out.print(verdict_text(found), highlight=False, markup=False, soft_wrap=True)
    page = Path(found.folder) / "sweep.html"
    out.print(f"report: {page}", highlight=False, markup=False, soft_wrap=True)
    if found.recipe is not None:
        out.print(
            f"next: luthier train {found.recipe}", highlight=False, markup=False, soft_wrap=True
        )
