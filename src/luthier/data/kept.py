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
from pathlib import Path
from zipfile import BadZipFile

from luthier.data.parts import read_part, write_part
from luthier.data.token_cache import definition
from luthier.data.tokens import Tokenizer, TokenRow
from luthier.errors import UserError
from luthier.events import Note
from luthier.files import code_hash, staged_folder, write_json
from luthier.models.pull import cache_folder
from luthier.recipe import DataGroup, Recipe
from luthier.records.data import DataReport

log = logging.getLogger(__name__)

WORTH_KEEPING = 2**20  # bytes of sources; less is prepared sooner than looked up
_KEPT, _KEPT_BYTES = 50, 20 * 2**30  # the newest splits, so many at most

_SIDES = ("train", "validation")

Sides = tuple[list[TokenRow], list[TokenRow]]


def sources_key(recipe: Recipe, encoder: Tokenizer, hashes: Mapping[str, str]) -> str:
    """Of all that decides what ``recipe``'s files, with their ``hashes``, become."""
    data, objective = recipe.data.model_dump_json(), recipe.objective.learns_from
    chosen = [data, objective, recipe.train.seed, sorted(hashes.items())]
    return _digest(code_hash("data").encode(), json.dumps(chosen).encode(), definition(encoder))


def split_hash(
    hashes: Mapping[str, str], data: DataGroup, learns_from: str, encoder: Tokenizer
) -> str:
    """Of the lines of a split, by the hashes of its files, and of what makes token rows of them."""
    chosen = [sorted(hashes.items()), data.max_length, data.on_too_long, learns_from]
    return _digest(code_hash("data").encode(), json.dumps(chosen).encode(), definition(encoder))


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
        train, validation = (read_part(folder, side) for side in _SIDES)
    except (OSError, ValueError, KeyError, BadZipFile):
        return None
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
    for side, rows in zip(_SIDES, (train, validation), strict=True):
        write_part(folder, side, rows)


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
