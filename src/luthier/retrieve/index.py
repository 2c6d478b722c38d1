"""The index: a folder with the passages, their words and their vectors; it needs no server.

``passages.sqlite`` holds the passages and, through SQLite's FTS5, their words; ``vectors.usearch``
their vectors; ``manifest.json`` what it was made of.
"""

import json
import sqlite3
import time
from dataclasses import asdict, astuple, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from luthier import __version__
from luthier.errors import UserError
from luthier.events import OnEvent, during, ignore, tracked
from luthier.files import sha256, staged_folder, write_json
from luthier.retrieve.documents import document_files, hash_documents, read_documents
from luthier.retrieve.embed import NAME, Embedder, Vectors
from luthier.retrieve.passages import Passage, cut_passages
from luthier.retrieve.vectors import new_store

SIZE, OVERLAP = 160, 32  # tokens: about a paragraph, and a sentence of it again
FORMAT = 1
PASSAGES, VECTORS, MANIFEST = "passages.sqlite", "vectors.usearch", "manifest.json"

_SCHEMA = """
CREATE TABLE passages (id INTEGER PRIMARY KEY, file, first_line, last_line, title, text);
CREATE VIRTUAL TABLE words USING fts5(
  title, text, content='passages', content_rowid='id', tokenize='porter unicode61');
"""


@dataclass(frozen=True)
class Manifest:
    """What an index was made of.

    Attributes:
        documents: the folder, as an absolute path.
        hashes: SHA-256 of each document by its name in that folder.
        left_out: skipped files of the folder, which are not documents, by name.
        parts: SHA-256 of the index's own files.
        tokens: of all passages, by the embedding model's tokenizer.
    """

    format: int
    documents: str
    hashes: dict[str, str]
    left_out: list[str]
    parts: dict[str, str]
    passages: int
    tokens: int
    size: int
    overlap: int
    embedding: str
    seconds: float
    when: str
    luthier: str


def build_index(
    documents: Path,
    out: Path,
    embedder: Embedder,
    *,
    size: int = SIZE,
    overlap: int = OVERLAP,
    on_event: OnEvent = ignore,
) -> Manifest:
    """Index the documents of a folder into the folder ``out``, which is complete or absent.

    An index already at ``out`` is replaced.

    Args:
        size: longest passage, in tokens of the embedding model.
        overlap: tokens that a passage repeats of the one before.

    Raises:
        UserError: a document cannot be read, none has any text, or ``out`` holds something else.
    """
    started = time.perf_counter()
    if out.exists() and (out.is_file() or any(out.iterdir())) and not (out / MANIFEST).is_file():
        raise UserError(f"{out} exists and is not an index; choose another folder with --out")
    with during("hashing documents", on_event):
        hashes = hash_documents(documents)
    left_out = document_files(documents)[1]
    passages = [
        passage
        for document in tracked(
            read_documents(documents), "cutting documents", on_event, unit="documents"
        )
        for passage in cut_passages(document, embedder.tokenizer, size, overlap)
    ]
    if not passages:
        raise UserError(f"the documents of {documents} have no text")
    texts = [_searched(passage) for passage in passages]
    vectors = embedder.embed(texts, on_event)
    tokens = sum(map(len, embedder.tokenizer(texts, add_special_tokens=False).input_ids))
    try:
        with during("writing the index", on_event), staged_folder(out) as folder:
            _write_passages(folder / PASSAGES, passages)
            _write_vectors(folder / VECTORS, vectors)
            manifest = Manifest(
                format=FORMAT,
                documents=str(documents.resolve()),
                hashes=hashes,
                left_out=[path.relative_to(documents).as_posix() for path in left_out],
                parts={name: sha256(folder / name) for name in (PASSAGES, VECTORS)},
                passages=len(passages),
                tokens=tokens,
                size=size,
                overlap=overlap,
                embedding=NAME,
                seconds=round(time.perf_counter() - started, 2),
                when=datetime.now(UTC).isoformat(timespec="seconds"),
                luthier=__version__,
            )
            write_json(folder / MANIFEST, asdict(manifest))
    except (OSError, sqlite3.Error) as error:
        raise UserError(f"cannot write the index {out}: {error}") from error
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """The manifest of the index in ``folder``.

    Raises:
        UserError: there is no index, or one of another version of the format.
    """
    again = "build it with: luthier rag index DOCS --out " + str(folder)
    try:
        values: dict[str, Any] = json.loads((folder / MANIFEST).read_text("utf-8"))
    except OSError:
        raise UserError(f"there is no index at {folder}; {again}") from None
    except ValueError:
        raise UserError(f"the index {folder} is damaged ({MANIFEST}); {again}") from None
    if values.get("format") != FORMAT:
        raise UserError(
            f"the index {folder} has format {values.get('format')}, not {FORMAT}; {again}"
        )
    try:
        return Manifest(**values)
    except TypeError:
        raise UserError(f"the index {folder} is damaged ({MANIFEST}); {again}") from None


def changes(manifest: Manifest) -> list[str]:
    """How the documents have changed since: ``a.md is new``; empty where they have not.

    Empty too where the folder no longer exists: an index works without it.
    """
    folder = Path(manifest.documents)
    if not folder.is_dir():
        return []
    try:
        now = hash_documents(folder)
    except UserError:
        now = {}
    then = manifest.hashes
    words = dict.fromkeys(now.keys() - then.keys(), "is new")
    words |= dict.fromkeys(then.keys() - now.keys(), "is gone")
    words |= {name: "has changed" for name in now.keys() & then.keys() if now[name] != then[name]}
    return [f"{name} {words[name]}" for name in sorted(words)]


def _searched(passage: Passage) -> str:
    return f"{passage.title}\n{passage.text}" if passage.title else passage.text


def _write_passages(path: Path, passages: list[Passage]) -> None:
    connection = sqlite3.connect(path)
    try:
        connection.executescript(_SCHEMA)
        connection.executemany(
            "INSERT INTO passages VALUES (?, ?, ?, ?, ?, ?)",
            ((number, *astuple(passage)) for number, passage in enumerate(passages)),
        )
        connection.execute("INSERT INTO words(words) VALUES ('rebuild')")
        connection.commit()
    except sqlite3.OperationalError as error:
        if "fts5" in str(error):
            raise UserError(
                "this Python's SQLite was built without FTS5, which the index needs; use a Python "
                "whose SQLite has it"
            ) from error
        raise
    finally:
        connection.close()


def _write_vectors(path: Path, vectors: Vectors) -> None:
    store = new_store(vectors.shape[1])
    store.add(range(len(vectors)), vectors)
    store.save(str(path))
