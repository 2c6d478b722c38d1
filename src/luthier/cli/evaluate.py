"""`luthier evaluate`."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from luthier.cli.app import Json, app, err, out, print_json
from luthier.run import open_run

_LABELS = {
    "loss": "loss",
    "perplexity": "perplexity",
    "exact_match": "exact match",
    "rouge_l": "ROUGE-L",
    "chrf": "chrF",
    "sql_execution": "SQL execution",
}


@app.command()
def evaluate(
    run_path: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run.")],
    data: Annotated[
        str | None,
        typer.Option(help="Rows to evaluate on; else the run's own validation rows."),
    ] = None,
    samples: Annotated[int, typer.Option(min=0, help="Answers to show side by side.")] = 4,
    as_json: Json = False,
) -> None:
    """Compare the tuned model with its base on held-out rows.

    Loss and perplexity are over supervised tokens; answers are greedy, and scored by the recipe's
    `evaluate.metrics`. Writes `evaluation.json` into the run.
    """
    run = open_run(run_path)
    from luthier.evaluate.before_after import evaluate_run

    with evaluation_progress() as on_progress:
        evaluation = evaluate_run(run, data, on_progress)
    if as_json:
        print_json(evaluation)
        return
    show_comparison(evaluation)
    show_samples(evaluation, samples)
    out.print(f"all of it: {run.evaluation_path}", highlight=False, soft_wrap=True)


class evaluation_progress:  # noqa: N801  # used like a function
    """Bars on stderr for the stages that ``evaluate_run`` reports."""

    def __init__(self) -> None:
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=err,
            transient=True,
        )
        self.tasks: dict[str, Any] = {}

    def __enter__(self) -> Any:
        self.progress.start()
        return self._update

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def _update(self, what: str, done: int, total: int) -> None:
        if what not in self.tasks:
            self.tasks[what] = self.progress.add_task(what, total=total)
        self.progress.update(self.tasks[what], completed=done)


def show_comparison(evaluation: dict[str, Any]) -> None:
    """Base and tuned, one row a figure."""
    title = f"{evaluation['rows']} held-out rows, {evaluation['supervised_tokens']:,} tokens scored"
    if evaluation["answered_rows"]:
        title += f", {evaluation['answered_rows']} answered"
    table = Table("")
    for side in ("base", "tuned"):
        table.add_column(side, justify="right")
    for key, label in _LABELS.items():
        if key in evaluation["base"]:
            share = key not in ("loss", "perplexity")
            cells = [
                f"{evaluation[side][key]:.1%}" if share else f"{evaluation[side][key]:.3f}"
                for side in ("base", "tuned")
            ]
            table.add_row(label, *cells)
    out.print(title, highlight=False)
    out.print(table)


def show_samples(evaluation: dict[str, Any], count: int) -> None:
    """The first answers, base and tuned side by side."""
    for sample in evaluation["samples"][:count]:
        out.print(_sample_table(sample))


def _sample_table(sample: dict[str, Any]) -> Table:
    table = Table(show_header=False)
    question = sample["messages"][-1]
    prompt = "\n".join(filter(None, [question["content"], question.get("input", "")]))
    # Text, not markup: an answer may hold square brackets.
    for label, text in [
        ("row", sample["row"]),
        ("prompt", prompt),
        ("reference", sample["reference"]),
        ("base", sample["base"]),
        ("tuned", sample["tuned"]),
    ]:
        table.add_row(label, Text(_shortened(text)))
    return table


def _shortened(text: str, limit: int = 400) -> str:
    return text if len(text) <= limit else text[:limit] + " …"
