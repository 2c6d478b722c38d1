"""The `luthier data` group; its commands register on it."""

import typer

from luthier.cli.app import app

data = typer.Typer(no_args_is_help=True, help="Check, show, fix, convert, split and mix data.")
app.add_typer(data, name="data")
