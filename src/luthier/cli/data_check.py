"""`luthier data check | show`."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from luthier.cli.app import Json, out, print_json
from luthier.cli.data import Columns, data, parse_columns
from luthier.cli.terminal import terminal
from luthier.errors import UserError
from luthier.yaml_text import parse_yaml

_COLOURS = {"error": "bold red", "warning": "yellow", "info": "cyan"}

ModelSource = Annotated[
    str | None,
    typer.Option("--model", "-m", help="Model whose tokenizer and chat template to use."),
]
Template = Annotated[str, typer.Option(help="As data.template in a recipe.")]
TemplateKwargs = Annotated[
    str | None,
    typer.Option(
        metavar="NAME=VALUE,...",
        help="As data.template_kwargs in a recipe: enable_thinking=false.",
    ),
]


def _switches(text: str | None) -> dict[str, Any]:
    """The switches of a chat template that ``--template-kwargs`` gives.

    Raises:
        UserError: it is not of the form NAME=VALUE, or a value is a list.
    """
    switches: dict[str, Any] = {}
    for part in text.split(",") if text else ():
        name, equals, value = (piece.strip() for piece in part.partition("="))
        read = parse_yaml(value, f"--template-kwargs {name}") if equals else None
        if not name or not equals or not isinstance(read, str | bool | int | float | None):
            raise UserError(
                f"--template-kwargs: '{part}' is not NAME=VALUE (enable_thinking=false)"
            )
        switches[name] = read
    return switches


@data.command()
def check(
    paths: Annotated[list[str], typer.Argument(metavar="PATH...", help="Files to train on.")],
    model: ModelSource = None,
    max_length: Annotated[int, typer.Option(min=8, help="Longest row, in tokens.")] = 1024,
    template: Template = "auto",
    template_kwargs: TemplateKwargs = None,
    validation: Annotated[
        list[str] | None,
        typer.Option(help="Validation file, to look for leaks from the training set."),
    ] = None,
    evaluation: Annotated[
        list[str] | None,
        typer.Option(help="Evaluation file, to look for its rows in the training set."),
    ] = None,
    columns: Columns = None,
    html: Annotated[Path | None, typer.Option(help="Write the report as a web page.")] = None,
    as_json: Json = False,
) -> None:
    """Find problems in training data before they cost a run.

    Finds rows that cannot be read or trained on, duplicates and near duplicates, prompts with
    several answers, leaks into validation, keys and personal data, template text, broken
    characters, refusals, outliers and more, each with its rows by file and line and what to do.
    With --model, lengths are in tokens and rows are checked against its chat template.

    Exits with 1 if there are errors. Example:
    `luthier data check my.jsonl --model smollm2-135m --html report.html`
    """
    from luthier.api import check_data, render_page
    from luthier.files import write_text

    with terminal() as on_event:
        checked = check_data(
            paths,
            validation=validation or [],
            evaluation=evaluation or [],
            model=model,
            template=template,
            max_length=max_length,
            columns=parse_columns(columns),
            template_kwargs=_switches(template_kwargs),
            on_event=on_event,
        )
    report = checked.to_dict()
    if html is not None:
        write_text(html, render_page(report))
    if as_json:
        print_json(report)
    else:
        _show_report(report)
        if html is not None:
            out.print(f"the report as a web page: {html}", highlight=False, soft_wrap=True)
    if report["verdict"] == "error":
        raise typer.Exit(1)


def _show_report(report: dict[str, Any]) -> None:
    from luthier.api import read_as

    for file in report["files"]:
        formats = ", ".join(file["formats"]) or "no known format"
        if file["columns"]:
            formats += f", reads {read_as(file['columns'])}"
        out.print(
            f"{file['file']}: {file['rows']:,} rows, {formats} ({file['role']})",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    lengths = report["lengths"]
    if lengths["total"]:
        parts = [
            f"{name} {lengths[name]['p50']:,} (95% ≤ {lengths[name]['p95']:,}, "
            f"longest {lengths[name]['max']:,})"
            for name in ("prompt", "answer")
        ]
        out.print(f"median {lengths['unit']}: {'; '.join(parts)}", highlight=False)
    if report["packing"]:
        packing = report["packing"]
        out.print(
            f"padding every row to {lengths['max_length']:,} tokens would waste "
            f"{1 - packing['padded_to_max']:.0%} of the work, padding within batches of four "
            f"{1 - packing['padded_in_batch']:.0%}; luthier pads nothing "
            f"(packed: bins {packing['packed']:.0%} full)",
            highlight=False,
        )
    if not report["findings"]:
        out.print("no problems found", style="green")
        return
    files = [file["file"] for file in report["files"]]
    table = Table("", "rows", "finding", "where", "what to do", show_lines=True)
    table.columns[1].justify = "right"
    for finding in report["findings"]:
        severity = Text(finding["severity"], style=_COLOURS[finding["severity"]])
        table.add_row(
            severity,
            f"{finding['count']:,}",
            finding["title"],
            Text(_places(finding, files)),
            Text(finding["remedy"]),
        )
    out.print(table)


def _places(finding: dict[str, Any], files: list[str]) -> str:
    """The first two examples, without the file's folder; a single file goes without its name too."""
    shown = []
    for example in finding["examples"][:2]:
        text = ": ".join(filter(None, [example["row"], example["detail"]]))
        for file in files:
            text = text.replace(f"{file}:", "line " if len(files) == 1 else f"{Path(file).name}:")
        shown.append(text)
    return "\n".join(shown)


@data.command()
def show(
    path: Annotated[str, typer.Argument(help="A data file.")],
    model: Annotated[
        str, typer.Option("--model", "-m", help="Model whose tokenizer and chat template to use.")
    ],
    row: Annotated[int, typer.Option(min=1, help="Which row, from 1.")] = 1,
    template: Template = "auto",
    template_kwargs: TemplateKwargs = None,
    train_on: Annotated[str, typer.Option(help="completions or all")] = "completions",
    columns: Columns = None,
    as_json: Json = False,
) -> None:
    """Show a row exactly as the model sees it, with special tokens, and which tokens are trained on.

    Example: `luthier data show my.jsonl --model smollm2-135m --row 3`
    """
    from luthier.api import encode_row, read_as, resolve

    with terminal() as on_event:
        folder = resolve(model, on_event=on_event).folder
        shown = encode_row(
            path,
            row,
            folder,
            template,
            train_on,
            on_event,
            parse_columns(columns),
            _switches(template_kwargs),
        )
    if as_json:
        print_json(shown)
        return
    text, part = Text(), 0
    parts = shown["tokens"][-1]["part"]
    for piece in shown["tokens"]:
        if parts > 1 and piece["part"] != part:
            part = piece["part"]
            text.append("\n" if part > 1 else "")
            text.append(
                f"answer {part} of {parts}, a row of its own (data.history):\n", style="bold"
            )
        # White on green is supervised; the rest is context. Brackets mark special tokens.
        style = "bold white on dark_green" if piece["supervised"] else "dim"
        visible = piece["text"].replace("\n", "⏎\n").replace("\t", "→")
        text.append(f"⟦{visible}⟧" if piece["special"] else visible, style=style)
        text.append("·" if piece["supervised"] else "", style="green")
    out.print(text, soft_wrap=False)
    learned = sum(piece["supervised"] for piece in shown["tokens"])
    renamed = f" with {read_as(shown['columns'])}" if shown["columns"] else ""
    out.print(
        f"{shown['row']}, format {shown['format']}{renamed}, template {shown['template']}: "
        f"{len(shown['tokens'])} tokens, {learned} of them supervised (marked), ⟦special⟧",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
