"""Token rows on disk, kept between runs: the same rows by the same tokenizer are tokenised once."""

import hashlib
import logging
import shutil
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import IO

from luthier.data.conversation import Conversation
from luthier.data.stored import StoredRows, cannot_write, content_hash, temporary_file
from luthier.data.template import TemplateRejects
from luthier.data.token_file import Packed, TokenFile, TokenWriter
from luthier.data.tokens import Encoded, Tokenizer, TokenRow
from luthier.data.workers import in_workers
from luthier.errors import UserError
from luthier.events import OnEvent, during, ignore, tracked
from luthier.files import staged_file
from luthier.models.pull import cache_folder

log = logging.getLogger(__name__)

_BLOCK = 256  # rows that a process tokenises at once
WORTH = 500  # rows; fewer are tokenised sooner than looked up, and stay in memory
_KEPT, _KEPT_BYTES = 50, 20 * 2**30  # the newest files, so many at most
VERSION = 3  # of the mask's rules: raise it when `data/spans.py` or `data/tokens.py` change them


def encode_all(
    encoder: Tokenizer,
    rows: Sequence[Conversation],
    on_event: OnEvent = ignore,
    *,
    keep: bool = True,
) -> list[Encoded]:
    """``encoder.encode`` of each row, or its error; from the cache where they were encoded before.

    The tokens of many rows are not in memory but in a file. Its key is a hash of the rows' content,
    the tokenizer's definition, its template and what counts as supervised, so that a change of any of
    them tokenises again. A cache that cannot be written is not an error, and rows of which one is
    refused are not cached; nor are any without ``keep``.
    """
    if len(rows) < WORTH:
        following = tracked(rows, "tokenising rows", on_event, len(rows))
        return [_of(each, rows, n) for n, each in enumerate(encoder.encode_all(following))]
    stored: TokenFile | None = None
    if keep:
        with during("looking for tokenised rows in the cache", on_event):
            path = cache_folder().parent / "tokens" / f"{_key(encoder, rows)}.tokens"
            stored = _load(path)
        if stored is not None:
            return [*stored.token_rows(rows)]
    file = temporary_file()
    try:
        refused = _write(file, encoder, rows, on_event)
    except OSError as error:
        raise cannot_write(error) from error
    if keep and not refused:
        try:
            with during("keeping the tokenised rows in the cache", on_event):
                stored = _keep(file, path)
        except UserError as error:
            log.debug("token rows were not cached: %s", error)
    encoded: list[Encoded] = [*(stored or TokenFile(file)).token_rows(rows)]
    for index, why in refused.items():
        encoded[index] = why
    return encoded


def _of(encoded: Encoded, rows: Sequence[Conversation], index: int) -> Encoded:
    """``encoded`` as token rows of ``rows[index]``, which may be on disk."""
    if isinstance(encoded, TemplateRejects):
        return encoded
    return [TokenRow.of(rows, index, *row.arrays) for row in encoded]


def _write(
    file: IO[bytes], encoder: Tokenizer, rows: Sequence[Conversation], on_event: OnEvent
) -> dict[int, TemplateRejects]:
    """Write token rows to ``file``; gives what was refused, by its place."""

    def work(start: int, end: int) -> tuple[Packed, dict[int, TemplateRejects]]:
        refused: dict[int, TemplateRejects] = {}
        made: list[list[TokenRow]] = []
        block = (rows[index] for index in range(start, end))
        for index, pieces in enumerate(encoder.encode_all(block), start):
            if isinstance(pieces, TemplateRejects):
                refused[index], pieces = pieces, []
            made.append(pieces)
        return Packed.of(made), refused

    writer = TokenWriter(file)
    refused: dict[int, TemplateRejects] = {}
    following = tracked(
        in_workers(work, len(rows), _BLOCK),
        "tokenising rows",
        on_event,
        len(rows),
        size=lambda block: len(block[0].pieces),
    )
    for packed, without in following:
        writer.add(packed)
        refused |= without
    writer.finish()
    return refused


def definition(encoder: Tokenizer) -> bytes:
    """All that decides which tokens ``encoder`` makes, and which of them count."""
    tokenizer = encoder.tokenizer
    chosen = [VERSION, list(versions().values()), encoder.train_on, encoder.history]
    written = (tokenizer.chat_template, tokenizer.special_tokens_map)
    return f"{chosen} {written!r} {tokenizer.backend_tokenizer.to_str()}".encode()


def versions() -> dict[str, str]:
    """Of the packages that render and tokenise."""
    return {name: version(name) for name in ("tokenizers", "transformers", "jinja2")}


def _key(encoder: Tokenizer, rows: Sequence[Conversation]) -> str:
    digest = hashlib.sha256(definition(encoder))
    hashes = rows.content_hashes() if isinstance(rows, StoredRows) else map(content_hash, rows)
    for each in hashes:
        digest.update(each)
    return digest.hexdigest()


def _keep(file: IO[bytes], path: Path) -> TokenFile | None:
    file.seek(0)
    with staged_file(path) as kept:
        shutil.copyfileobj(file, kept, 2**20)
    ages = {each: each.stat().st_mtime for each in path.parent.glob("*.tokens")}
    room = _KEPT_BYTES
    for number, each in enumerate(sorted(ages, key=lambda each: -ages[each])):
        room -= each.stat().st_size
        if number >= _KEPT or (number and room < 0):
            with suppress(OSError):  # Windows deletes no file that is being read
                each.unlink()
    return _load(path)


def _load(path: Path) -> TokenFile | None:
    """None: it is absent or damaged, so the rows are tokenised again and it is written over."""
    try:
        found = TokenFile(path)
        path.touch()
    except (OSError, ValueError):
        return None
    return found
