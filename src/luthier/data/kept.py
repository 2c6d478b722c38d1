"""Prepared data, kept between runs: from unchanged sources a run starts in seconds.

Two things are kept: rows and tokens of a split under a hash of its lines and of what tokenises them,
so that a resumed run finds them too; and under a hash of the sources and the recipe's choices, which
split they became and the report about it.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from itertools import chain, groupby
from pathlib import Path
from zipfile import BadZipFile

from luthier.data.split import split_key
from luthier.data.stored import RowFile, StoredRows
from luthier.data.token_cache import definition
from luthier.data.token_file import TokenFile, TokenWriter
from luthier.data.tokens import Tokenizer, TokenRow
from luthier.errors import UserError
from luthier.events import Note
from luthier.files import staged_folder, write_json
from luthier.models.pull import cache_folder
from luthier.recipe import DataGroup, Recipe
from luthier.records.data import DataReport

log = logging.getLogger(__name__)

WORTH_KEEPING = 2**20  # bytes of sources; less is prepared sooner than looked up
_KEPT, _KEPT_BYTES = 50, 20 * 2**30  # the newest splits, so many at most

Sides = tuple[list[TokenRow], list[TokenRow]]


def sources_key(recipe: Recipe, encoder: Tokenizer, hashes: Mapping[str, str]) -> str:
    """Of all that decides what ``recipe``'s files, with their ``hashes``, become."""
    data, objective = recipe.data.model_dump_json(), recipe.objective.learns_from
    chosen = [data, objective, recipe.train.seed, sorted(hashes.items())]
    return _digest(_code(), json.dumps(chosen).encode(), definition(encoder))


def split_hash(
    hashes: Mapping[str, str], data: DataGroup, learns_from: str, encoder: Tokenizer
) -> str:
    """Of the lines of a split, by the hashes of its files, and of what makes token rows of them."""
    chosen = [sorted(hashes.items()), data.max_length, data.on_too_long, learns_from]
    return _digest(_code(), json.dumps(chosen).encode(), definition(encoder))


def find_split(key: str) -> Sides | None:
    """Token rows of both sides as they were kept; None where they are not, or damaged."""
    found = read_split(_folder() / key)
    if found is not None:
        with suppress(OSError):
            os.utime(_folder() / key)
    return found


def read_split(folder: Path) -> Sides | None:
    """What ``write_split`` wrote; None where it did not, or it is damaged."""
    try:
        files = [TokenFile(folder / f"{side}.tokens") for side in ("train", "validation")]
        rows = RowFile.open(folder / "rows.jsonl", folder / "rows.npz", split_key)
        counts = [len(file.pieces) for file in files]
        if sum(counts) != len(rows):
            return None
    except (OSError, ValueError, KeyError, BadZipFile):
        return None
    train, validation = (
        list(chain.from_iterable(file.token_rows(StoredRows(rows, range(first, first + count)))))
        for file, count, first in zip(files, counts, (0, counts[0]), strict=True)
    )
    return train, validation


def keep_split(key: str, train: Sequence[TokenRow], validation: Sequence[TokenRow]) -> None:
    """Keep both sides. A cache that cannot be written is not an error."""
    try:
        with staged_folder(_folder() / key) as folder:
            write_split(folder, train, validation)
        _make_room()
    except (OSError, UserError) as error:
        log.debug("prepared rows were not kept: %s", error)


@dataclass(frozen=True)
class KeptReport:
    """What sources became.

    Attributes:
        split: the key of ``find_split``.
        notes: what was said about them.
    """

    split: str
    report: DataReport
    notes: Sequence[Note]


def find_report(key: str) -> KeptReport | None:
    """What was kept of sources under ``key``; None where nothing was, or it is damaged."""
    try:
        told = json.loads((_folder() / f"{key}.json").read_bytes())
        notes = [Note(str(text), bool(warning)) for text, warning in told["notes"]]
        return KeptReport(str(told["split"]), DataReport.model_validate(told["report"]), notes)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def keep_report(key: str, kept: KeptReport) -> None:
    """Keep what ``find_report`` finds. A cache that cannot be written is not an error."""
    notes = [[note.text, note.warning] for note in kept.notes]
    told = {"split": kept.split, "report": kept.report.to_dict(), "notes": notes}
    try:
        write_json(_folder() / f"{key}.json", told)
    except UserError as error:
        log.debug("the report of prepared rows was not kept: %s", error)


def _folder() -> Path:
    return cache_folder().parent / "prepared"


def write_split(folder: Path, train: Sequence[TokenRow], validation: Sequence[TokenRow]) -> None:
    """Write rows and tokens of both sides into ``folder``, for ``read_split``."""
    sides = {"train": train, "validation": validation}
    with (folder / "rows.jsonl").open("w+b") as lines:
        rows = RowFile(split_key, lines)
        for name, kept in sides.items():
            with (folder / f"{name}.tokens").open("wb") as file:
                _write_side(kept, rows, TokenWriter(file))
        rows.save_index(folder / "rows.npz")


def _write_side(kept: Sequence[TokenRow], rows: RowFile, writer: TokenWriter) -> None:
    for _, same in groupby(kept, lambda row: row.source):
        pieces = list(same)
        stored = pieces[0].stored
        if stored is None:
            rows.append(pieces[0].conversation)
        else:
            rows.append_from(*stored)
        writer.add(pieces)
    writer.finish()


def _make_room() -> None:
    """Delete the oldest splits beyond what is kept, and reports that point nowhere."""
    ages = {each: each.stat().st_mtime for each in _folder().iterdir() if each.is_dir()}
    room = _KEPT_BYTES
    for number, each in enumerate(sorted(ages, key=lambda each: -ages[each])):
        room -= sum(file.stat().st_size for file in each.iterdir())
        if number >= _KEPT or (number and room < 0):
            shutil.rmtree(each, ignore_errors=True)
    for report in _folder().glob("*.json"):
        found = find_report(report.stem)
        if found is None or not (_folder() / found.split).is_dir():
            with suppress(OSError):
                report.unlink()


def _digest(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


@cache
def _code() -> bytes:
    """Hash of what reads, splits and tokenises: another version may do it otherwise."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).digest()
