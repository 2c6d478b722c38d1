"""`luthier data tokenize`."""

from pathlib import Path
from typing import Annotated

import typer

from luthier.cli.app import Json, Overrides, out, print_json
from luthier.cli.data import data
from luthier.cli.terminal import terminal
from luthier.recipe import load_recipe


@data.command()
def tokenize(
    recipe_path: Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe.")],
    out_path: Annotated[Path, typer.Option("--out", help="Folder for the shards.")],
    shards: Annotated[
        int | None,
        typer.Option(
            min=1, help="Shards of each side of the split; default: one for each 500 MiB of tokens."
        ),
    ] = None,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Tokenise the data of a recipe once, for many runs and machines.

    The rows are read, split, rendered by the chat template and tokenised as `luthier train` does it,
    and written to a folder that needs no copy of the sources. A recipe that names this folder as
    data.train trains on the same tokens in the same order. Where its tokenizer, its template or its
    data keys are others, the run refuses and says which. Example:

    `luthier data tokenize lora.yaml --out tokens`, then
    `luthier train lora.yaml --set data.train=tokens`
    """
    from luthier.api import tokenize_data

    recipe = load_recipe(recipe_path, overrides or [])
    with terminal() as on_event:
        made = tokenize_data(recipe, out_path, shards=shards, on_event=on_event)
    if as_json:
        print_json({"out": str(out_path), **made.to_dict()})
        return
    for side, parts in (("training", made.train), ("validation", made.validation)):
        rows, tokens = sum(part.rows for part in parts), sum(part.tokens for part in parts)
        shown = "1 shard" if len(parts) == 1 else f"{len(parts)} shards"
        out.print(f"{rows:,} {side} rows, {tokens:,} tokens in {shown}", highlight=False)
    left = made.report.left_out
    for lost, why in (
        (len(left.bad), "cannot be used"),
        (len(left.too_long), "are longer than data.max_length"),
        (len(left.also_in_validation), "are in the validation file too, so they are skipped"),
    ):
        if lost:
            out.print(f"{lost:,} rows {why}: see {out_path}/tokenized.json", highlight=False)
    out.print(
        f"written to {out_path}; to train: luthier train {recipe_path} --set data.train={out_path}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
