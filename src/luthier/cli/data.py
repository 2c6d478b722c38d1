"""The `luthier data` group; its commands register on it."""

import typer

from luthier.cli.app import app

data = typer.Typer(
    no_args_is_help=True, help="Data: check it, look at it, split, convert, mend and mix it."
)
app.add_typer(data, name="data")
