"""Rows of several sources together: a split of one, a mixture of many."""

import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.data.readers import BadRow, read_rows
from luthier.data.rows import find_layout, read_row
from luthier.data.sources import find_files
from luthier.data.split import choose_held_out, split_key
from luthier.data.writers import write_rows
from luthier.errors import UserError
from luthier.events import OnEvent, ignore


def read_all(source: str, on_event: OnEvent = ignore) -> Iterator[dict[str, Any]]:
    """The rows of a source, unchanged.

    Raises:
        UserError: one cannot be read.
    """
    for item in read_rows(source, on_event):
        if isinstance(item, BadRow):
            raise UserError(f"{item}; fix it with `luthier data fix --apply drop-unreadable`")
        yield item[1]


def split_data(
    sources: Sequence[str],
    out: Path,
    fraction: float,
    seed: int,
    on_event: OnEvent = ignore,
    columns: Mapping[str, str] | None = None,
) -> tuple[int, int]:
    """Write ``out``/train.jsonl and ``out``/validation.jsonl; how many rows went to each.

    Rows with one prompt go to one side, as in ``data.validation_fraction``; ``columns`` are as
    in a recipe.

    Raises:
        UserError: a row cannot be read, or the files are there already.
    """
    train, validation = out / "train.jsonl", out / "validation.jsonl"
    for path in (train, validation):
        if path.exists():
            raise UserError(f"{path} exists; choose another --out")
    files = [file for source in sources for file in find_files(source, on_event)]
    keys = [key for file in files for key, _ in _keyed(file, columns, on_event)]
    held_out = choose_held_out(keys, fraction, seed)

    def side(held: bool) -> Iterator[dict[str, Any]]:
        for file in files:
            yield from (
                row for key, row in _keyed(file, columns, on_event) if (key in held_out) == held
            )

    return write_rows(train, side(False)), write_rows(validation, side(True))


def _keyed(
    file: str, columns: Mapping[str, str] | None, on_event: OnEvent
) -> Iterator[tuple[str, dict[str, Any]]]:
    for item in read_rows(file, on_event):
        try:
            if isinstance(item, BadRow):
                raise item
            origin, row = item
            yield split_key(read_row(row, origin, columns)[1]), row
        except BadRow as bad:
            raise UserError(f"{bad}; fix it, or see `luthier data fix`") from None


@dataclass(frozen=True)
class Mixed:
    """Rows taken from a source, of those it has."""

    source: str
    taken: int
    available: int


def mix_data(
    weights: Sequence[tuple[str, float]],
    rows: int | None,
    out: Path,
    seed: int,
    on_event: OnEvent = ignore,
    columns: Mapping[str, str] | None = None,
) -> list[Mixed]:
    """Write a shuffled mixture of sources to ``out``, without repeating a row.

    Args:
        weights: sources and their shares, which need not sum to one.
        rows: rows in all; None takes as many as the shares allow without repeating any.
        columns: what the rows call the fields of their format, as in a recipe; they keep their names.

    Raises:
        UserError: a weight is not positive, a source is too small for ``rows``, or rows are of
            different formats.
    """
    if any(weight <= 0 for _, weight in weights):
        raise UserError("weights must be positive, as in: luthier data mix a.jsonl=3 b.jsonl=1")
    pools = [list(read_all(source, on_event)) for source, _ in weights]
    formats = {_kind(row, columns) for pool in pools for row in pool}
    if len(formats) > 1:
        names = ", ".join(sorted(formats))
        raise UserError(
            f"the sources have different formats ({names}); run `luthier data convert` first"
        )
    total = sum(weight for _, weight in weights)
    most = min(len(pool) * total / weight for pool, (_, weight) in zip(pools, weights, strict=True))
    wanted = int(most) if rows is None else rows
    taken: list[dict[str, Any]] = []
    mixed = []
    for pool, (source, weight) in zip(pools, weights, strict=True):
        count = round(wanted * weight / total)
        if count > len(pool):
            raise UserError(
                f"{source} has {len(pool)} rows, but {count} are needed from it; at most "
                f"--rows {int(most)} keep these shares"
            )
        taken += random.Random(_seed(seed, source)).sample(pool, count)  # noqa: S311
        mixed.append(Mixed(source, count, len(pool)))
    random.Random(seed).shuffle(taken)  # noqa: S311
    write_rows(out, taken)
    return mixed


def _kind(row: dict[str, Any], columns: Mapping[str, str] | None) -> str:
    layout = find_layout(row, columns)
    return "none" if layout is None else layout.kind


def _seed(seed: int, source: str) -> int:
    # Another source must not draw at the same places.
    return int.from_bytes(hashlib.sha256(f"{seed}:{source}".encode()).digest()[:8], "big")
