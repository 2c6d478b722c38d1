"""`luthier compare`."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
from rich.table import Column, Table
from rich.text import Text

from luthier.api import Goal
from luthier.cli.app import Json, Overrides, app, out, print_json, split_list
from luthier.cli.terminal import terminal
from luthier.cli.trusting import Trust, open_trusted
from luthier.errors import Interrupted, UserError
from luthier.recipe import Recipe, load_recipe, model_recipe, parse_overrides
from luthier.run import Run

if TYPE_CHECKING:
    from luthier.api import Approach, Variant
    from luthier.api import ApproachQuestion as Question

_VARIANTS, _APPROACHES = "Variants of a recipe", "Approaches"


@app.command()
def compare(
    recipe: Annotated[
        Path | None, typer.Argument(metavar="[RECIPE]", help="The recipe to vary.")
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(
            help="Some of full, lora and qlora, separated by commas.", rich_help_panel=_VARIANTS
        ),
    ] = None,
    vary: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GROUP.KEY=A,B",
            help="Values of any key: method.lora_r=4,16,64, train.learning_rate=1e-4,1e-3, "
            'method.target_modules="[q_proj,v_proj],all-linear". Repeatable; all combinations run.',
            rich_help_panel=_VARIANTS,
        ),
    ] = None,
    seeds: Annotated[
        int,
        typer.Option(
            min=1, help="Runs per variant, each with its own seed.", rich_help_panel=_VARIANTS
        ),
    ] = 1,
    price_per_hour: Annotated[
        float | None,
        typer.Option(
            min=0, help="US dollars per hour for this machine.", rich_help_panel=_VARIANTS
        ),
    ] = None,
    approaches: Annotated[
        str | None,
        typer.Option(
            help="Some of zero-shot, few-shot, rag, fine-tuned and hybrid, separated by commas; the "
            "others are tested against the first.",
            rich_help_panel=_APPROACHES,
        ),
    ] = None,
    docs: Annotated[
        Path | None,
        typer.Option(help="Folder of documents, or an index.", rich_help_panel=_APPROACHES),
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(help="Finished run, for fine-tuned and hybrid.", rich_help_panel=_APPROACHES),
    ] = None,
    model: Annotated[
        str,
        typer.Option(help="Model to ask if there is no run.", rich_help_panel=_APPROACHES),
    ] = "smollm2-135m",
    examples: Annotated[
        str | None,
        typer.Option(help="Rows for few-shot; default: the run's.", rich_help_panel=_APPROACHES),
    ] = None,
    shots: Annotated[
        int, typer.Option(min=1, help="Examples in the prompt.", rich_help_panel=_APPROACHES)
    ] = 3,
    passages: Annotated[
        int, typer.Option("--k", min=1, help="Passages per query.", rich_help_panel=_APPROACHES)
    ] = 3,
    by: Annotated[
        str | None,
        typer.Option(help="Field of the rows to group scores by.", rich_help_panel=_APPROACHES),
    ] = None,
    goal: Annotated[
        list[str] | None,
        typer.Option(
            metavar="METRIC=GOAL",
            help=f"What a metric measures: {', '.join(get_args(Goal))}. Repeatable.",
            rich_help_panel=_APPROACHES,
        ),
    ] = None,
    prices: Annotated[
        Path | None,
        typer.Option(help="YAML file of prices to use.", rich_help_panel=_APPROACHES),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="Rows to compare on; with a recipe, by default its validation rows."),
    ] = None,
    metrics: Annotated[
        str | None, typer.Option(help="As in `luthier evaluate`; by default the recipe's.")
    ] = None,
    overrides: Overrides = None,
    folder: Annotated[Path, typer.Option("--out", help="Folder for the results.")] = Path(
        "comparison"
    ),
    trust: Trust = False,
    as_json: Json = False,
) -> None:
    """Compare methods or approaches side by side on the same held-out rows.

    With a recipe: trains and evaluates each variant (methods, ranks, layers, learning rates, seeds),
    and shows quality with intervals, forgetting, planned and measured memory, time and size.

    Example: `luthier compare recipes/lora.yaml --methods full,lora,qlora --set data.train=my.jsonl`

    With `--approaches`: asks the same questions zero-shot, few-shot, with retrieved documents, with
    the tuned model, and with both; shows quality, latency, tokens, cost and set-up, and whether the
    results confirm what `luthier advise` says.

    Example: `luthier compare --approaches zero-shot,rag,fine-tuned --data test.jsonl --docs docs/
    --run runs/first`

    Writes `comparison.json`, `.md` and `.html`. Run it again after an interruption and it goes on.
    """
    names = split_list(metrics)
    if recipe is not None and approaches is None:
        from luthier.api import ComparisonFolder, make_variants, parse_vary

        grid = parse_vary(vary or [])
        variants = make_variants(
            load_recipe(recipe, overrides or []),
            split_list(methods),
            grid,
            seeds,
            ComparisonFolder(folder).runs_path,
        )
        comparison = _variants(variants, folder, data, names, price_per_hour)
    elif recipe is None and approaches is not None:
        if methods or vary or seeds > 1:
            raise UserError(
                "--methods, --vary and --seeds need a recipe; they do not go with --approaches"
            )
        if data is None:
            raise UserError("--approaches needs questions: give --data")
        chosen = _approach_names(approaches)
        tuned = open_trusted(run, trust) if run else None
        described = _recipe(tuned, model, names, overrides or [])
        from luthier.api import ApproachQuestion as Question

        question = Question(
            chosen, described, data, docs, tuned, examples, shots=shots, passages=passages
        )
        comparison = _approaches(question, folder, by, _goals(goal or []), prices)
    else:
        raise UserError("give a recipe to vary, or --approaches; see luthier compare --help")
    if as_json:
        print_json(comparison)
    else:
        _show(comparison)
        out.print(f"full comparison: {folder / 'comparison.html'}", highlight=False, soft_wrap=True)


def _variants(
    variants: "list[Variant]",
    folder: Path,
    data: str | None,
    metrics: list[str],
    price_per_hour: float | None,
) -> dict[str, Any]:
    from luthier.api import compare_methods, write_methods

    try:
        with terminal() as on_event:
            comparison = compare_methods(
                variants,
                folder,
                data,
                metrics=metrics or None,
                price_per_hour=price_per_hour,
                on_event=on_event,
            )
    except Interrupted as stop:
        again = shlex.join(["luthier", *sys.argv[1:]])
        raise Interrupted(f"{stop}\ngo on with: {again}") from None
    write_methods(comparison, folder)
    return comparison


def _approach_names(text: str) -> "tuple[Approach, ...]":
    from luthier.api import APPROACHES

    chosen = split_list(text)
    for name in chosen:
        if name not in APPROACHES:
            raise UserError(f"there is no approach '{name}'; known: {', '.join(APPROACHES)}")
    if not chosen or len(set(chosen)) < len(chosen):
        raise UserError(f"--approaches must name each approach once: {','.join(APPROACHES)}")
    return tuple(name for text in chosen for name in APPROACHES if name == text)


def _recipe(run: Run | None, model: str, metrics: list[str], overrides: list[str]) -> Recipe:
    """The run's recipe, or one for the model alone, with what the options override."""
    changes = parse_overrides(overrides)
    if metrics:
        changes["evaluate"] = {"metrics": metrics, **changes.get("evaluate", {})}
    if run is not None:
        return run.recipe().changed(**changes)
    return model_recipe(model, **changes)


def _goals(texts: list[str]) -> dict[str, Goal]:
    aims: dict[str, Goal] = {}
    for text in texts:
        metric, _, named = text.partition("=")
        found: list[Goal] = [goal for goal in get_args(Goal) if goal == named]
        if not metric or not found:
            raise UserError(
                f"--goal takes METRIC=GOAL, where GOAL is one of {', '.join(get_args(Goal))}, "
                f"not '{text}'"
            )
        aims[metric] = found[0]
    return aims


def _approaches(
    question: "Question",
    folder: Path,
    by: str | None,
    goals: dict[str, Goal],
    prices: Path | None,
) -> dict[str, Any]:
    from luthier.api import compare_approaches, load_prices, write_approaches

    loaded = load_prices(prices)
    with terminal() as on_event:
        comparison = compare_approaches(
            question, folder, loaded, by=by, goals=goals, on_event=on_event
        )
    write_approaches(comparison, folder)
    return comparison


def _show(comparison: dict[str, Any]) -> None:
    from luthier.api import (
        approaches_table,
        groups_table,
        quality_table,
        resources_table,
        rules_table,
        tests_table,
    )

    out.print(f"{comparison['rows']} rows of {comparison['data']}", highlight=False, markup=False)
    if comparison["seen_in_training"]:
        out.print(
            f"{comparison['seen_in_training']} rows are in the training set: scores are optimistic",
            style="bold red",
        )
    if comparison["kind"] == "methods":
        tables = [f(comparison) for f in (quality_table, resources_table, tests_table)]
    else:
        head, rows = approaches_table(comparison)
        reached = 1 + len(comparison["metrics"])  # one table would be wider than a terminal
        tables = [
            (head[:reached], [row[:reached] for row in rows]),
            (head[:1] + head[reached:], [row[:1] + row[reached:] for row in rows]),
        ]
        tables += [groups_table(comparison)] if comparison["by"] else []
        tables += [rules_table(comparison)] if comparison["rules"] else []
    for head, rows in tables:
        table = Table(Column(head[0], no_wrap=True), *head[1:])
        for row in rows:
            table.add_row(*map(Text, row))
        out.print(table)
    out.print("[95% confidence interval]", style="dim", markup=False)
