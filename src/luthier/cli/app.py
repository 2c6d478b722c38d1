"""What the commands share: the application, the consoles, the options that repeat."""

import json
from typing import Annotated, Any

import typer
from rich.console import Console

app = typer.Typer(
    name="luthier",
    help="Fine-tune language models: prepare data, train, measure what improved, use the result.",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)

# Results go to stdout, messages and progress to stderr: `--json` output can be piped.
out = Console()
err = Console(stderr=True)

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]

Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="GROUP.KEY=VALUE", help="Override a key of the recipe; may be repeated."
    ),
]

AdapterScale = Annotated[
    float,
    typer.Option(min=0, max=2, help="Scale of the adapter's update: 0 is the base, 1 as trained."),
]


def split_list(text: str | None) -> list[str]:
    """The names in an option that takes several, separated by commas."""
    return [part.strip() for part in text.split(",") if part.strip()] if text else []


def print_json(value: Any) -> None:
    """``value`` on stdout, for machines: no colour, no wrapping."""
    print(json.dumps(value, indent=2, ensure_ascii=False))
