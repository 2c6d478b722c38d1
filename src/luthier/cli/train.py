"""`luthier train`."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from luthier.cli.app import Json, Overrides, app, out, print_json
from luthier.cli.terminal import terminal
from luthier.cli.trusting import Trust, open_trusted
from luthier.errors import Interrupted, UserError
from luthier.recipe import Recipe, load_recipe
from luthier.run import Run, claim_run
from luthier.runtime import world

if TYPE_CHECKING:
    from luthier.records import Measured


@app.command()
def train(
    recipe_path: Annotated[
        Path, typer.Argument(metavar="RECIPE", help="A recipe file, or the folder of a run.")
    ],
    overrides: Overrides = None,
    check_determinism: Annotated[
        bool,
        typer.Option(
            "--verify-determinism",
            help="Only train the first 10 steps twice and compare the bytes; exit 1 if they differ.",
        ),
    ] = False,
    nproc: Annotated[
        int,
        typer.Option(
            "--nproc",
            metavar="N",
            min=1,
            help="Train in N processes of this machine together, each with a GPU of its own where there "
            "are any (docs/processes.md).",
        ),
    ] = 1,
    trust: Trust = False,
    as_json: Json = False,
) -> None:
    """Train a model as a recipe says: full fine-tuning, LoRA or QLoRA.

    Makes a run folder (`runs/<name>`) with the data split, checkpoints, `metrics.jsonl` and, at the
    end, the best weights in `adapter/` or `model/`. Ctrl-C saves a checkpoint and stops. After any
    interruption the same command resumes exactly from the last checkpoint. Every evaluation asks a
    few general questions to detect forgetting; `train.stop_on_forgetting` stops the run then.

    Example: `luthier train recipes/lora.yaml --set data.train=my.jsonl --set run.name=first`
    """
    place = world()
    if place.size > 1 and nproc > 1:
        raise UserError(
            f"{place.size} processes were started to train together already; leave --nproc out"
        )
    if check_determinism and max(place.size, nproc) > 1:
        raise UserError("--verify-determinism compares runs of one process; start one")
    recipe, run = _find(recipe_path, overrides or [], trust)
    if check_determinism:
        _verify_determinism(recipe, as_json)
        return
    from luthier.api import train_run, train_run_together

    was_finished = run.finished
    try:
        with terminal() as on_event:
            if nproc > 1:
                measured = train_run_together(recipe, run, nproc, on_event)
            else:
                measured = train_run(recipe, run, on_event)
    except Interrupted as stop:
        raise Interrupted(f"{stop}\ngo on with: {shlex.join(['luthier', *sys.argv[1:]])}") from None
    if place.rank > 0:  # rank 0 speaks for all
        return
    if as_json:
        print_json({"run": str(run.root), **measured.to_dict()})
        return
    if was_finished:
        out.print(f"{run.root} had already finished; choose another run.name to train again")
    show_measured(run.root, measured)
    out.print(f"next: luthier evaluate {run.root}", highlight=False)


def _verify_determinism(recipe: Recipe, as_json: bool) -> None:
    from luthier.api import DETERMINISM_STEPS as STEPS
    from luthier.api import verify_determinism

    found = verify_determinism(recipe)
    if as_json:
        print_json({"same": not found, "differences": found})
    elif found:
        out.print("two runs of this recipe differ in:", style="bold red")
        for difference in found:
            out.print(f"  {difference}", markup=False, highlight=False)
    else:
        out.print(
            f"both runs of up to {STEPS} steps are byte-identical: weights, optimiser, random state and "
            "every logged number",
            highlight=False,
        )
    if found:
        raise typer.Exit(1)


def _find(path: Path, overrides: list[str], trust: bool) -> tuple[Recipe, Run]:
    """The recipe and run that ``path`` means."""
    if path.is_dir():
        if overrides:
            raise UserError(
                "a run's settings cannot change: use --set with a recipe, not with a run folder"
            )
        run = open_trusted(path, trust, to_train=True)
        return run.recipe(), run
    recipe = load_recipe(path, overrides)
    return recipe, claim_run(recipe, path.stem)


def show_measured(root: Path, measured: "Measured") -> None:
    """What a finished run took, and where its weights are."""
    table = Table(show_header=False)
    if measured.best_eval_loss is not None:
        perplexity = measured.best_eval_perplexity
        table.add_row(
            "best validation loss",
            f"{measured.best_eval_loss:.4f} at step {measured.best_step} of {measured.steps}"
            + (f" (perplexity {perplexity:.2f})" if perplexity is not None else ""),
        )
    if measured.forgot:
        table.add_row(
            "stopped early",
            "accuracy on general questions fell by more than train.stop_on_forgetting",
        )
    elif measured.stopped_early:
        table.add_row("stopped early", "the validation loss stopped improving")
    table.add_row(
        "time", f"{measured.seconds:.0f} s, {measured.tokens_per_second:,.0f} tokens/s in training"
    )
    table.add_row("peak memory", f"{measured.peak_memory_bytes / 2**30:.2f} GiB")
    names = {"peak_memory": "peak memory", "tokens_per_second": "tokens/s"}
    if measured.plan_errors:
        off = ", ".join(f"{names[k]} {v:+.0%}" for k, v in measured.plan_errors.items())
        table.add_row("error of the plan", off)
    table.add_row("weights", str(root / measured.weights))
    out.print(table)
