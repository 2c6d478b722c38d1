"""Token rows in a folder, with the conversations they were made of: three files a part."""

from collections.abc import Sequence
from itertools import chain, groupby
from pathlib import Path

from luthier.data.split import split_key
from luthier.data.stored import RowFile, StoredRows
from luthier.data.token_file import Packed, TokenFile, TokenWriter
from luthier.data.tokens import TokenRow

# Conversations as lines of JSON; where each is, and came from; the tokens.
LINES, INDEX, TOKENS = "rows", "npz", "tokens"


def write_part(folder: Path, name: str, kept: Sequence[TokenRow]) -> int:
    """Write ``kept`` into files of ``folder`` that begin with ``name``; gives the number of conversations.

    Raises:
        OSError, UserError: the disk is full.
    """
    with (
        (folder / f"{name}.{LINES}").open("w+b") as lines,
        (folder / f"{name}.{TOKENS}").open("wb") as tokens,
    ):
        rows, writer = RowFile(split_key, lines), TokenWriter(tokens)
        for _, same in groupby(kept, lambda row: row.source):
            pieces = list(same)
            stored = pieces[0].stored
            if stored is None:
                rows.append(pieces[0].conversation)
            else:
                rows.append_from(*stored)
            writer.add(Packed.of([pieces]))
        writer.finish()
        rows.save_index(folder / f"{name}.{INDEX}")
    return len(rows)


def read_part(folder: Path, name: str) -> list[TokenRow]:
    """What ``write_part`` wrote; tokens and conversations stay in the files.

    Raises:
        OSError, ValueError, KeyError, BadZipFile: it is absent or damaged.
    """
    tokens = TokenFile(folder / f"{name}.{TOKENS}")
    lines, index = (folder / f"{name}.{ending}" for ending in (LINES, INDEX))
    rows = RowFile.open(lines, index, split_key)
    if len(tokens.pieces) != len(rows):
        raise ValueError("tokens of other rows")
    return list(chain.from_iterable(tokens.token_rows(StoredRows(rows, range(len(rows))))))
