"""The `luthier data` group; its commands register on it."""

from typing import Annotated

import typer

from luthier.cli.app import app
from luthier.errors import UserError
from luthier.recipe import COLUMN_NAMES

data = typer.Typer(no_args_is_help=True, help="Check, show, fix, convert, split and mix data.")
app.add_typer(data, name="data")

Columns = Annotated[
    str | None,
    typer.Option(
        metavar="FIELD=COLUMN,...",
        help="As data.columns in a recipe: prompt=question,completion=answer.",
    ),
]


def parse_columns(text: str | None) -> dict[str, str] | None:
    """The mapping that ``--columns`` gives.

    Raises:
        UserError: it is not of the form FIELD=COLUMN, or names a field that no format has.
    """
    if text is None:
        return None
    columns = {}
    for part in text.split(","):
        ours, equals, theirs = (piece.strip() for piece in part.partition("="))
        if not equals or not theirs:
            raise UserError(f"--columns: '{part}' is not FIELD=COLUMN (prompt=question)")
        if ours not in COLUMN_NAMES:
            raise UserError(
                f"--columns: no format has a field '{ours}'; fields are {', '.join(COLUMN_NAMES)}"
            )
        columns[ours] = theirs
    return columns
