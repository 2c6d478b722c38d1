"""Work on a run in a process that outlives the one that asked for it.

    python -m luthier.train.detached

is that process. It reads what to do from its standard input, writes what it has to say into the run's
``output_path``, and is in a session of its own, so that no terminal ends it. Who wants to know how
far it is reads the run folder.
"""

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from importlib import import_module

from luthier.errors import Interrupted, UserError
from luthier.events import Event, Note, Progress
from luthier.recipe import Recipe
from luthier.run import Run
from luthier.runtime import prepare

_EVERY = 2.0  # seconds between two lines about the same work


def start_training(recipe: Recipe, run: Run) -> int:
    """Train as `luthier train` does; returns the id of the process.

    Raises:
        UserError: as ``start_detached``.
    """
    return start_detached(recipe, run, "luthier.runs:train_run")


def start_evaluation(run: Run) -> int:
    """Evaluate a finished run and write its report; returns the id of the process.

    Raises:
        UserError: the run has not finished; or as ``start_detached``.
        Untrusted: the run is of someone else, and asks for what needs consent.
    """
    run.require_finished()
    return start_detached(run.recipe(), run, "luthier.runs:evaluate_and_report")


def start_detached(recipe: Recipe, run: Run, how: str) -> int:
    """Call ``how`` (``module:function``) with recipe, run and a listener, in a new process.

    Returns:
        the id of the process.

    Raises:
        UserError: a process works on the run already, or the folder cannot be written.
    """
    if run.worker() is not None:
        raise UserError(f"another process is using {run.root}; wait for it to finish, or stop it")
    command = [sys.executable, "-P", "-m", "luthier.train.detached"]
    try:
        run.root.parent.mkdir(parents=True, exist_ok=True)
        with run.output_path.open("wb") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
    except OSError as error:
        raise UserError(f"cannot start a process for {run.root}: {error}") from error
    run.note_worker(process.pid)  # before it has imported what it needs to take the lock
    assert process.stdin is not None
    with process.stdin as pipe:
        pipe.write(pickle.dumps((how, recipe, run)))
    threading.Thread(target=process.wait, daemon=True).start()  # leaves no zombie behind
    return process.pid


def stop(run: Run) -> None:
    """Ask the process that works on ``run`` to save and end, as Ctrl-C does.

    Raises:
        UserError: no process works on it.
    """
    process = run.worker()
    if process is None:
        raise UserError(f"no process is working on {run.root}")
    os.kill(process, signal.SIGTERM)


class _Printer:
    """Notes, and now and then a line of progress."""

    def __init__(self) -> None:
        self.said = 0.0

    def __call__(self, event: Event) -> None:
        now = time.monotonic()
        if isinstance(event, Note):
            print(event, flush=True)
        elif isinstance(event, Progress) and now - self.said >= _EVERY:
            self.said = now
            print(event, flush=True)


def main() -> None:
    """The process that works."""
    prepare()
    # From the process that started this one, over a pipe that no other has.
    how, recipe, run = pickle.load(sys.stdin.buffer)  # noqa: S301
    module, _, function = how.partition(":")
    try:
        getattr(import_module(module), function)(recipe, run, _Printer())
    except UserError as error:
        print(f"error: {error}", flush=True)
        sys.exit(2)
    except Interrupted as error:
        print(error, flush=True)
        sys.exit(130)


if __name__ == "__main__":
    main()
