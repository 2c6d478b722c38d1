"""Writing files so that a reader never sees half of one."""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO, Any

from luthier.errors import UserError


def _staging_name(path: Path) -> Path:
    # A leading dot keeps unfinished work out of globs; the suffix keeps two writers apart.
    return path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.tmp"


@contextmanager
def staged_file(path: Path) -> Iterator[IO[bytes]]:
    """Yield a binary file beside ``path`` that becomes ``path`` only if the block succeeds.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    staging = _staging_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with staging.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(staging, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            staging.unlink(missing_ok=True)


def link_file(path: Path, to: Path) -> None:
    """Make ``to`` the same file as ``path``, or a copy of it where the disk has no hard links.

    Raises:
        UserError: as ``staged_file``.
    """
    staging = _staging_name(to)
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        os.link(path, staging)
        os.replace(staging, to)
    except OSError:
        with path.open("rb") as source, staged_file(to) as file:
            shutil.copyfileobj(source, file)
    finally:
        with suppress(OSError):
            staging.unlink(missing_ok=True)


def user_path(text: str) -> Path:
    """The path that a person wrote, ``~`` and ``~name`` expanded.

    Raises:
        UserError: there is no such user.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise UserError(f"{text}: there is no user with that name on this machine") from None


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` as UTF-8: the old content or the new, never a part.

    Raises:
        UserError: as ``staged_file``.
    """
    with staged_file(path) as file:
        file.write(text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically (see ``write_text``)."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write one JSON object per line, atomically and as the rows come (see ``staged_file``)."""
    with staged_file(path) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False).encode("utf-8") + b"\n")


@contextmanager
def staged_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside ``path`` that becomes ``path`` only if the block succeeds.

    A folder already at ``path`` is replaced. On any exception nothing of the new one stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = _staging_name(path)
    staging.mkdir()
    try:
        yield staging
        for file in staging.rglob("*"):
            if file.is_file():
                # Windows syncs only what is open for writing.
                with file.open("r+b" if os.name == "nt" else "rb") as handle:
                    os.fsync(handle.fileno())
        _fsync_folder(staging)
        if path.exists():
            old = _staging_name(path)
            os.replace(path, old)
            os.replace(staging, path)
            shutil.rmtree(old)
        else:
            os.replace(staging, path)
        _fsync_folder(path.parent)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def remove_folder(path: Path) -> None:
    """Delete a folder so that a reader never takes a partly deleted folder for a complete one."""
    doomed = _staging_name(path)
    os.replace(path, doomed)
    shutil.rmtree(doomed)


def _fsync_folder(path: Path) -> None:
    # The rename itself is only durable once the folder that names it is on disk. Windows opens no
    # folder; its file system keeps a journal of names.
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_unfinished(path: Path) -> bool:
    """Whether ``path`` is what an interrupted writer left staged."""
    return path.match(".*.tmp")


def remove_unfinished(folder: Path) -> None:
    """Delete what interrupted writers left staged directly inside ``folder``."""
    for leftover in filter(is_unfinished, list(folder.iterdir()) if folder.is_dir() else []):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@cache
def code_hash(*packages: str) -> str:
    """Hex SHA-256 of our code in ``packages``, by default all: what other code made is not taken for its own."""
    ours, content = Path(__file__).parent, hashlib.sha256()
    for package in packages or (".",):
        for file in sorted((ours / package).rglob("*.py")):
            content.update(file.read_bytes())
    return content.hexdigest()
