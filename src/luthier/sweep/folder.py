"""The folder of a sweep: its names, and the lock that keeps a second command out."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from luthier.errors import UserError
from luthier.run import Run, WorkFolder


@dataclass(frozen=True)
class SweepFolder(WorkFolder):
    """A sweep at ``root``: trials are run folders in it, numbered from 000."""

    @property
    def trials_path(self) -> Path:
        return self.root / "trials"

    def trial(self, name: str) -> Run:
        return Run(self.trials_path / name)

    @property
    def database_path(self) -> Path:
        """Where Optuna keeps the trials, unless another storage is given."""
        return self.root / "optuna.db"

    @property
    def record_path(self) -> Path:
        return self.root / "sweep.json"

    @property
    def page_path(self) -> Path:
        return self.root / "sweep.html"

    @property
    def best_path(self) -> Path:
        """The best trial's settings as a recipe."""
        return self.root / "best.yaml"

    @property
    def judged_path(self) -> Path:
        """Losses of the best trial and of the default, row by row."""
        return self.root / "judged.jsonl"

    @property
    def place(self) -> str:
        """This folder on this machine, for sweeps that several machines share."""
        return f"{socket.gethostname()}:{self.root}"

    @property
    def asking_path(self) -> Path:
        """Locked while a trial is drawn, so that parallel jobs draw one at a time."""
        return self.root / ".asking.lock"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the sweep for this command alone.

        Raises:
            UserError: another command is at work on it, or the folder cannot be written.
        """
        try:
            self.trials_path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.root / ".lock", timeout=0)
            lock.acquire()
        except Timeout:
            raise UserError(
                f"another command is at work on the sweep in {self.root}; wait for it, or use --jobs "
                "to run several trials at a time"
            ) from None
        except OSError as error:
            raise UserError(f"cannot write in {self.root}: {error}") from error
        try:
            with self.worked_on():
                yield
        finally:
            lock.release()
