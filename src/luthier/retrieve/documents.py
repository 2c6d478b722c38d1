"""The documents of a folder, as text with line numbers."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from luthier.data.readers import BadRow, read_rows
from luthier.errors import UserError

READABLE = (".md", ".markdown", ".txt", ".jsonl")


@dataclass(frozen=True)
class Document:
    """A text and where it comes from: ``file`` is relative to the folder, ``line`` that of its start.

    ``title`` is what a row of a ``.jsonl`` file gives; other files have headings.
    """

    file: str
    line: int
    text: str
    title: str = ""

    @property
    def is_row(self) -> bool:
        """Whether the text is one line of its file."""
        return self.file.lower().endswith(".jsonl")


def document_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """Files below ``folder`` that are read, and those of other kinds; hidden ones are neither.

    Raises:
        UserError: there is no such folder, or nothing to read in it.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; give a folder of documents")
    files = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    readable = [path for path in files if path.suffix.lower() in READABLE]
    if not readable:
        raise UserError(f"{folder} has no documents; supported files are {', '.join(READABLE)}")
    return readable, [path for path in files if path not in set(readable)]


def hash_documents(folder: Path) -> dict[str, str]:
    """SHA-256 of each readable file, by its name relative to ``folder``.

    Raises:
        UserError: as ``document_files``, or a file cannot be read.
    """
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(_bytes(path)).hexdigest()
        for path in document_files(folder)[0]
    }


def read_documents(folder: Path) -> Iterator[Document]:
    """The documents, file by file; a ``.jsonl`` file has one per line: ``text``, maybe ``title``.

    Raises:
        UserError: as ``document_files``; a file is not UTF-8, or a row has no text.
    """
    for path in document_files(folder)[0]:
        name = path.relative_to(folder).as_posix()
        if path.suffix.lower() == ".jsonl":
            yield from _rows(path, name)
            continue
        try:
            yield Document(name, 1, _bytes(path).decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            raise UserError(
                f"{path} is not UTF-8 at byte {error.start}; convert the file to UTF-8"
            ) from None


def _rows(path: Path, name: str) -> Iterator[Document]:
    for item in read_rows(str(path)):
        if isinstance(item, BadRow):
            raise UserError(str(item))
        origin, row = item
        text, title = row.get("text"), row.get("title", "")
        if not isinstance(text, str) or not isinstance(title, str):
            raise UserError(
                f"{origin}: a document needs 'text' ('title' is optional), as strings; this row has "
                f"{', '.join(map(str, row)) or 'nothing'}"
            )
        yield Document(name, origin.line, text, title)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
