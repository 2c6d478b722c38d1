"""Tokenised rows for many runs and machines: a folder of shards, and a manifest that says what they are.

A run whose ``data.train`` is such a folder reads no source and tokenises nothing, and trains on the
same rows, in the same order, with the same tokens as from the sources.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

from luthier.data.parts import INDEX, LINES, TOKENS, read_part, write_part
from luthier.data.pins import pinned_day
from luthier.data.token_cache import VERSION, versions
from luthier.data.tokens import Tokenizer, TokenRow
from luthier.errors import UserError
from luthier.events import Note, OnEvent, tracked
from luthier.files import sha256, staged_folder, user_path, write_json
from luthier.recipe import DataGroup, Recipe
from luthier.records.data import DataReport, Shard, TokenizedData

MANIFEST = "tokenized.json"
_SHARD_BYTES = 500 * 2**20  # of tokens, about; as the hub's data sets
_BYTES = 4  # of a token

Sides = tuple[list[TokenRow], list[TokenRow]]

# What of the data group has no say in which token rows there are.
_FREE = {"train", "packing", "add_tokens", "template", "template_kwargs", "template_date"}


def find_shards(data: DataGroup) -> Path | None:
    """The folder of shards that ``data.train`` is; None where it is none.

    Raises:
        UserError: it is one among other sources.
    """
    sources = [data.train] if isinstance(data.train, str) else data.train
    found = [source for source in sources if (user_path(source) / MANIFEST).is_file()]
    if found and len(sources) > 1:
        raise UserError(
            f"{found[0]} holds tokenised rows, which cannot be mixed with other sources in data.train: "
            "tokenise all of them together (luthier data tokenize)"
        )
    return user_path(found[0]) if found else None


def check_free(folder: Path) -> None:
    """See that shards may be written to ``folder``: a new one, or one that holds shards already.

    Raises:
        UserError: it holds something else.
    """
    if (folder / MANIFEST).is_file() or not folder.exists():
        return
    if not folder.is_dir() or any(folder.iterdir()):
        raise UserError(
            f"{folder} exists and holds no tokenised rows; choose another folder for --out"
        )


def write_shards(
    folder: Path,
    recipe: Recipe,
    encoder: Tokenizer,
    sides: Sides,
    report: DataReport,
    shards: int | None,
    on_event: OnEvent,
) -> TokenizedData:
    """Write the rows of both ``sides`` as shards.

    Args:
        folder: see ``check_free``.
        report: about the rows, with the hashes of their lines.
        shards: of each side; None is one for each 500 MiB of tokens.

    Raises:
        UserError: ``folder`` cannot be written.
    """
    try:
        with staged_folder(folder) as staged:
            train, validation = (
                list(_write(staged, name, rows, shards, on_event))
                for name, rows in zip(("train", "validation"), sides, strict=True)
            )
            manifest = TokenizedData(
                version=VERSION,
                model=recipe.model.source,
                tokenizer=_tokenizer_hash(encoder),
                template=_template_hash(encoder),
                versions=versions(),
                settings=_settings(recipe, encoder),
                report=report,
                train=train,
                validation=validation,
            )
            write_json(staged / MANIFEST, manifest.to_dict())
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror or error}") from error
    return manifest


def open_shards(
    folder: Path, recipe: Recipe, encoder: Tokenizer, on_event: OnEvent
) -> tuple[Sides, DataReport]:
    """The rows in ``folder``, and the report about them.

    Raises:
        UserError: they were made for another tokenizer, template or other settings, or are damaged.
    """
    manifest = TokenizedData.from_file(folder / MANIFEST)
    differing = _differences(manifest, recipe, encoder)
    if differing:
        raise UserError(
            f"the rows in {folder} were tokenised otherwise than this recipe asks for:\n  "
            + "\n  ".join(differing)
            + "\nset these keys as they were, or tokenise the sources again (luthier data tokenize)"
        )
    others = [f"{n} {v}" for n, v in manifest.versions.items() if versions().get(n) != v]
    if others:
        on_event(
            Note(f"the rows in {folder} were tokenised by {', '.join(others)}, other than here")
        )
    return _read(folder, manifest, on_event), manifest.report


def open_same(
    folder: Path, report: DataReport, data: DataGroup, encoder: Tokenizer, on_event: OnEvent
) -> Sides | None:
    """The rows in ``folder`` where they are those that a run's ``report`` is about; else None."""
    try:
        manifest = TokenizedData.from_file(folder / MANIFEST)
        told = manifest.settings
        if (
            manifest.report.split_sha256 != report.split_sha256
            or manifest.version != VERSION
            or manifest.tokenizer != _tokenizer_hash(encoder)
            or manifest.template != _template_hash(encoder)
            or any(told.get(f"data.{key}") != getattr(data, key) for key in _CUTS)
        ):
            return None
        return _read(folder, manifest, on_event)
    except UserError:
        return None  # the run has its own rows


_CUTS = ("max_length", "on_too_long", "train_on", "history")


def _write(
    folder: Path, side: str, rows: Sequence[TokenRow], shards: int | None, on_event: OnEvent
) -> Iterator[Shard]:
    if not rows:
        return
    # All token rows of a conversation are in one shard.
    borders = [0, *_ends(rows)]
    tokens = sum(map(len, rows))
    count = shards or math.ceil(tokens * _BYTES / _SHARD_BYTES)
    count = max(1, min(count, len(borders) - 1))
    cuts = [borders[(len(borders) - 1) * number // count] for number in range(count + 1)]
    numbered = tracked(range(count), f"writing {side} shards", on_event, count, "shards")
    for number in numbered:
        part = rows[cuts[number] : cuts[number + 1]]
        name = f"{side}-{number:05}-of-{count:05}"
        conversations = write_part(folder, name, part)
        files = [folder / f"{name}.{ending}" for ending in (LINES, INDEX, TOKENS)]
        yield Shard(
            name=name,
            rows=conversations,
            token_rows=len(part),
            tokens=sum(map(len, part)),
            sha256={file.name: sha256(file) for file in files},
        )


def _ends(rows: Sequence[TokenRow]) -> Iterator[int]:
    """After which of ``rows`` a conversation ends: how many are up to it."""
    end = 0
    for _, same in groupby(rows, lambda row: row.source):
        end += sum(1 for _ in same)
        yield end


def _read(folder: Path, manifest: TokenizedData, on_event: OnEvent) -> Sides:
    shards = [*manifest.train, *manifest.validation]
    found: dict[str, list[TokenRow]] = {}
    for shard in tracked(shards, f"checking {folder}", on_event, len(shards), "shards"):
        try:
            wrong = next((n for n, h in shard.sha256.items() if sha256(folder / n) != h), None)
            found[shard.name] = [] if wrong else read_part(folder, shard.name)
        except FileNotFoundError as error:
            raise UserError(f"{error.filename} is missing; copy the whole folder again") from None
        except (OSError, ValueError, KeyError, BadZipFile) as error:
            raise UserError(f"cannot read the shard {shard.name} in {folder}: {error}") from error
        if wrong:
            raise UserError(
                f"{folder / wrong} is not as it was written; copy it again, or tokenise the sources "
                "again (luthier data tokenize)"
            )
    train, validation = (
        [row for shard in side for row in found[shard.name]]
        for side in (manifest.train, manifest.validation)
    )
    return train, validation


def _differences(manifest: TokenizedData, recipe: Recipe, encoder: Tokenizer) -> list[str]:
    if manifest.version != VERSION:
        return ["by another version of luthier, whose tokens or mask may differ"]
    found = []
    if manifest.tokenizer != _tokenizer_hash(encoder):
        found.append(
            f"by another tokenizer: that of {manifest.model}, and the recipe's is that of "
            f"{recipe.model.source} (model.source, data.add_tokens)"
        )
    elif manifest.template != _template_hash(encoder):
        found.append(
            "with another chat template (data.template, data.template_kwargs, data.template_date"
            + (f"; it wrote the day {day})" if (day := manifest.settings.get("day")) else ")")
        )
    mine = _settings(recipe, encoder)
    found += [
        f"with {key} {_shown(value)}, and the recipe has {_shown(mine.get(key))}"
        for key, value in manifest.settings.items()
        if key != "day" and mine.get(key) != value
    ]
    return found


def _shown(value: Any) -> str:
    return "none" if value is None else str(value)


def _settings(recipe: Recipe, encoder: Tokenizer) -> dict[str, Any]:
    data = recipe.data
    told: dict[str, Any] = {
        f"data.{key}": value
        for key, value in data.model_dump(mode="json").items()
        if key not in _FREE
    }
    if data.validation is not None:
        told["data.validation_fraction"] = None  # it has no say
    told["what the objective learns from"] = recipe.objective.learns_from
    drawn = told["data.validation_fraction"] or data.max_rows is not None or data.replay is not None
    told["train.seed"] = recipe.train.seed if drawn else None
    day = pinned_day(encoder.tokenizer.chat_template or "")
    told["day"] = str(day) if day is not None else None
    return told


def _tokenizer_hash(encoder: Tokenizer) -> str:
    tokenizer = encoder.tokenizer
    text = f"{tokenizer.special_tokens_map!r} {tokenizer.backend_tokenizer.to_str()}"
    return hashlib.sha256(text.encode()).hexdigest()


def _template_hash(encoder: Tokenizer) -> str:
    return hashlib.sha256(repr(encoder.tokenizer.chat_template).encode()).hexdigest()
