"""Reading a JSON-lines file while a run writes it."""

import os
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import BaseModel, ValidationError

R = TypeVar("R", bound=BaseModel)


class Followed(Generic[R]):
    """The records of a file that grows, read once each.

    A resumed run rewrites its metrics up to the checkpoint: then all are read again.

    Attributes:
        records: all so far.
        damaged: complete lines that hold no record.
    """

    def __init__(self, kind: type[R], path: Path) -> None:
        self.records: list[R] = []
        self.damaged = 0
        self._kind = kind
        self._path = path
        self._file: tuple[int, int] | None = None  # device and inode
        self._at = 0

    def grew(self) -> bool:
        """Read what was written since the last call; whether that changed ``records``."""
        try:
            with self._path.open("rb") as file:
                status = os.fstat(file.fileno())
                found = (status.st_dev, status.st_ino)
                again = found != self._file or status.st_size < self._at
                had = bool(self.records)
                if again:
                    self.records, self.damaged, self._at, self._file = [], 0, 0, found
                file.seek(self._at)
                text = file.read()
        except FileNotFoundError:
            return False
        complete = text[: text.rfind(b"\n") + 1]  # a last line may still be written
        self._at += len(complete)
        for line in complete.split(b"\n")[:-1]:
            try:
                self.records.append(self._kind.model_validate_json(line))
            except ValidationError:
                self.damaged += 1
        return bool(complete) or (again and had)


def last_lines(path: Path, most: int = 4096) -> list[bytes]:
    """The complete lines among the last ``most`` bytes of a file; none where there is no file."""
    try:
        with path.open("rb") as file:
            end = file.seek(0, 2)
            file.seek(max(0, end - most))
            text = file.read()
    except OSError:
        return []
    lines = text.split(b"\n")[:-1]
    return lines if end <= most else lines[1:]  # the first may be a part
