"""`luthier data convert | split | mix`: data files to data files."""

from pathlib import Path
from typing import Annotated

import typer

from luthier.cli.app import Json, out, print_json
from luthier.cli.data import Columns, data, parse_columns
from luthier.cli.terminal import terminal
from luthier.errors import UserError

Out = Annotated[Path, typer.Option("--out", help="File to write; its extension sets the kind.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the random choice.")]


def _say(text: str) -> None:
    out.print(text, highlight=False, markup=False, soft_wrap=True)


@data.command()
def convert(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH...",
            help="Data, or LLaMA-Factory's dataset_info.json:NAME, or an Axolotl YAML file.",
        ),
    ],
    to: Annotated[
        str,
        typer.Option(help="alpaca, messages, sharegpt, prompt_completion, preference or text."),
    ],
    out_path: Out,
    on_bad_row: Annotated[
        str, typer.Option(help="error, or skip: for rows that cannot be read or converted.")
    ] = "error",
    columns: Columns = None,
    as_json: Json = False,
) -> None:
    """Convert data from one format, or kind of file, to another.

    What a format has no place for (several turns in alpaca, say) is never dropped silently: it is an
    error that names the rows. Example:
    `luthier data convert chat.parquet --to messages --out chat.jsonl`
    """
    from luthier.api import convert_data, read_as

    if on_bad_row not in ("error", "skip"):
        raise UserError(f"--on-bad-row must be error or skip, not '{on_bad_row}'")
    with terminal() as on_event:
        done = convert_data(
            paths, to, out_path, on_bad_row == "skip", on_event, parse_columns(columns)
        )
    if as_json:
        print_json({"out": str(out_path), **vars(done), "formats": dict(done.formats)})
        return
    formats = ", ".join(f"{n:,} {name}" for name, n in done.formats.items())
    if done.columns:
        _say(f"read {read_as(done.columns)}")
    _say(f"{done.written:,} rows ({formats}) written to {out_path} as {to}")
    if done.rejected_dropped:
        _say(
            f"{done.rejected_dropped:,} rejected answers were dropped: {to} holds only the chosen ones"
        )
    if done.left_out:
        _say(f"{len(done.left_out):,} rows were skipped, the first:")
        for text in done.left_out[:5]:
            _say(f"  {text}")


@data.command()
def split(
    paths: Annotated[list[str], typer.Argument(metavar="PATH...", help="Data to split.")],
    out_path: Annotated[Path, typer.Option("--out", help="Folder for the two files.")],
    fraction: Annotated[
        float, typer.Option(min=0.0001, max=0.9, help="Share of the rows held out.")
    ] = 0.1,
    seed: Seed = 42,
    columns: Columns = None,
    as_json: Json = False,
) -> None:
    """Split data into train.jsonl and validation.jsonl; no prompt is in both.

    Example: `luthier data split my.jsonl --out parts --fraction 0.05`
    """
    from luthier.api import split_data

    with terminal() as on_event:
        train, validation = split_data(
            paths, out_path, fraction, seed, on_event, parse_columns(columns)
        )
    if as_json:
        print_json({"out": str(out_path), "train": train, "validation": validation})
        return
    _say(
        f"{out_path}/train.jsonl: {train:,} rows\n{out_path}/validation.jsonl: {validation:,} rows"
    )


@data.command()
def mix(
    weights: Annotated[
        list[str], typer.Argument(metavar="PATH=WEIGHT...", help="Sources and their shares.")
    ],
    out_path: Out,
    rows: Annotated[
        int | None, typer.Option(min=1, help="Total rows; by default as many as the shares allow.")
    ] = None,
    seed: Seed = 42,
    columns: Columns = None,
    as_json: Json = False,
) -> None:
    """Mix sources by weight into one shuffled file, without repeating a row; rows keep their fields.

    Example: `luthier data mix task.jsonl=9 general.jsonl=1 --out train.jsonl`
    (`data.replay` in a recipe does this while training.)
    """
    from luthier.api import mix_data

    pairs = []
    for text in weights:
        source, equals, weight = text.rpartition("=")
        try:
            pairs.append((source, float(weight)))
        except ValueError:
            equals = ""
        if not equals:
            raise UserError(f"'{text}' is not PATH=WEIGHT (general.jsonl=1)")
    with terminal() as on_event:
        mixed = mix_data(pairs, rows, out_path, seed, on_event, parse_columns(columns))
    if as_json:
        print_json({"out": str(out_path), "sources": [vars(part) for part in mixed]})
        return
    for part in mixed:
        _say(f"{part.source}: {part.taken:,} of {part.available:,} rows")
    _say(f"{sum(part.taken for part in mixed):,} rows written to {out_path}")
