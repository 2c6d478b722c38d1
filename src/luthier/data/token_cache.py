"""Token rows kept between runs: the same rows by the same tokenizer are tokenised once."""

import hashlib
import itertools
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from luthier.data.conversation import Conversation
from luthier.data.template import TemplateRejects
from luthier.data.tokens import Tokenizer, TokenRow
from luthier.errors import UserError
from luthier.events import OnEvent, during, ignore, tracked
from luthier.files import staged_file
from luthier.models.pull import cache_folder

log = logging.getLogger(__name__)

_WORTH = 500  # rows; fewer are tokenised sooner than looked up
_KEPT = 50  # newest files
_VERSION = 2  # of the mask's rules: raise it when `data/spans.py` or `data/tokens.py` change them


def encode_all(
    encoder: Tokenizer, rows: Sequence[Conversation], on_event: OnEvent = ignore
) -> list[list[TokenRow] | TemplateRejects]:
    """``encoder.encode`` of each row, or its error; from the cache where they were encoded before.

    The key is a hash of the rows' content, the tokenizer's definition, its template and what counts
    as supervised, so that a change of any of them tokenises again. A cache that cannot be written is
    not an error, and rows of which one is refused are not cached.
    """
    following = tracked(rows, "tokenising rows", on_event, len(rows))
    if len(rows) < _WORTH:
        return [_encoded(encoder, row) for row in following]
    with during("looking for tokenised rows in the cache", on_event):
        path = cache_folder().parent / "tokens" / f"{_key(encoder, rows)}.npz"
        stored = _load(path, rows)
    if stored is not None:
        return [*stored]
    encoded = [_encoded(encoder, row) for row in following]
    good = [rows for rows in encoded if not isinstance(rows, TemplateRejects)]
    if len(good) == len(rows):
        try:
            with during("keeping the tokenised rows in the cache", on_event):
                _store(path, good)
        except UserError as error:
            log.debug("token rows were not cached: %s", error)
    return encoded


def _encoded(encoder: Tokenizer, row: Conversation) -> list[TokenRow] | TemplateRejects:
    try:
        return encoder.encode(row)
    except TemplateRejects as error:
        return error


def _key(encoder: Tokenizer, rows: Sequence[Conversation]) -> str:
    tokenizer = encoder.tokenizer
    digest = hashlib.sha256(f"{_VERSION} {encoder.train_on} {encoder.history}".encode())
    digest.update(tokenizer.backend_tokenizer.to_str().encode())
    digest.update(repr((tokenizer.chat_template, tokenizer.special_tokens_map)).encode())
    for row in rows:
        digest.update(json.dumps([row.text, row.messages], ensure_ascii=True).encode())
    return digest.hexdigest()


def _store(path: Path, encoded: Sequence[Sequence[TokenRow]]) -> None:
    rows = [row for pieces in encoded for row in pieces]
    with staged_file(path) as file:
        np.savez(
            file,
            pieces=np.array([len(pieces) for pieces in encoded], np.int64),
            lengths=np.array([len(row) for row in rows], np.int64),
            input_ids=np.array([t for row in rows for t in row.input_ids], np.int32),
            supervised=np.packbits([s for row in rows for s in row.supervised]),
        )
    kept = sorted(path.parent.glob("*.npz"), key=lambda each: each.stat().st_mtime)
    for old in kept[:-_KEPT]:
        old.unlink(missing_ok=True)


def _load(path: Path, rows: Sequence[Conversation]) -> list[list[TokenRow]] | None:
    try:
        with np.load(path, allow_pickle=False) as stored:
            pieces, lengths = stored["pieces"].tolist(), stored["lengths"]
            ids = stored["input_ids"].tolist()
            supervised = np.unpackbits(stored["supervised"], count=len(ids)).astype(bool).tolist()
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return None  # absent, or damaged: tokenised again and written over
    if len(pieces) != len(rows) or sum(pieces) != len(lengths) or int(lengths.sum()) != len(ids):
        return None
    ends = np.cumsum(lengths).tolist()
    spans = iter(zip([0, *ends[:-1]], ends, strict=True))
    return [
        [
            TokenRow(ids[start:end], supervised[start:end], row)
            for start, end in itertools.islice(spans, count)
        ]
        for count, row in zip(pieces, rows, strict=True)
    ]
