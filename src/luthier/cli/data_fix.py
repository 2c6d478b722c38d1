"""`luthier data fix`."""

from pathlib import Path
from typing import Annotated

import typer

from luthier.cli.app import Json, out, print_json
from luthier.cli.data import Columns, data, parse_columns
from luthier.cli.terminal import terminal


@data.command()
def fix(
    paths: Annotated[
        list[str], typer.Argument(metavar="PATH...", help="Files to fix; they are not changed.")
    ],
    out_path: Annotated[Path, typer.Option("--out", help="File for the fixed rows (.jsonl).")],
    apply: Annotated[str, typer.Option(help="Fixes to apply, separated by commas; see above.")],
    columns: Columns = None,
    as_json: Json = False,
) -> None:
    """Apply fixes to a copy of the data, and log every change beside it.

    Texts: `fix-mojibake` (cafÃ© → café), `normalise-unicode` (NFC), `strip-control-characters`,
    `strip-whitespace`, `redact` (keys, cards, e-mail, phone → `[EMAIL]` …).

    Rows: `drop-unreadable`, `drop-empty`, `drop-exact-duplicates`, `keep-first-of-conflicts`.

    The source is never changed; `OUT.changes.jsonl` lists what was changed in which row. Example:
    `luthier data fix my.jsonl --out fixed.jsonl --apply drop-exact-duplicates,redact`
    """
    from luthier.api import fix_data

    remedies = [name.strip() for name in apply.split(",") if name.strip()]
    with terminal() as on_event:
        fixed = fix_data(paths, out_path, remedies, on_event, parse_columns(columns))
    if as_json:
        counts = {"read": fixed.read, "written": fixed.written, "changes": dict(fixed.changes)}
        print_json({"out": str(out_path), **counts})
        return
    for remedy in remedies:
        out.print(f"{remedy}: {fixed.changes[remedy]:,} rows", highlight=False)
    out.print(
        f"{fixed.written:,} of {fixed.read:,} rows written to {out_path}\n"
        f"every change is logged in {out_path}.changes.jsonl",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
