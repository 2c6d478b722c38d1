"""A text file that grows by complete lines."""

import threading
from pathlib import Path

from luthier.run import Run


class GrowingFile:
    """Lines at the end of a file of a run folder.

    Lines wait until the folder is a run's (a mistake in the recipe prevents that), and when they
    cannot be written, as on a full disk: they are written with the next one. No half line stays in
    the file, neither of a failed write nor of a process that was killed in one.
    """

    def __init__(self, run: Run, path: Path) -> None:
        self.run = run
        self.path = path
        self._waiting = ""
        self._whole = False  # whether the file is known to end with a complete line
        self._lock = threading.RLock()  # a handler of a signal may write at any time

    def add(self, line: str) -> None:
        """Write ``line``, after those that wait.

        Raises:
            OSError: it could not be written now.
        """
        with self._lock:
            self._waiting += line + "\n"
            if not self.run.recipe_path.is_file():
                return
            if not self._whole:
                _drop_half_line(self.path)
                self._whole = True
            with self.path.open("ab", buffering=0) as file:
                begin = file.tell()
                data = self._waiting.encode("utf-8")
                try:
                    if file.write(data) != len(data):
                        raise OSError("no space left for a complete line")
                except OSError:
                    file.truncate(begin)
                    raise
            self._waiting = ""

    def forget_waiting(self) -> None:
        """Drop what could not be written so far."""
        self._waiting = ""


def _drop_half_line(path: Path) -> None:
    if not path.is_file():
        return
    with path.open("rb+") as file:
        end = file.seek(0, 2)
        begin = end
        while begin > 0:  # from the end, as these files become long
            start = max(0, begin - 4096)
            file.seek(start)
            newline = file.read(begin - start).rfind(b"\n")
            if newline >= 0:
                begin = start + newline + 1
                break
            begin = start
        if begin < end:
            file.truncate(begin)
