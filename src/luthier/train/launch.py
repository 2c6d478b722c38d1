"""Training in a process of its own: it shares no state or memory with this one.

    python -m luthier.train.launch ADDRESS

is that process; ``call_apart`` starts it and passes on its events, its result and its errors.
"""

import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import import_module
from multiprocessing.connection import Client, Connection, Listener
from typing import Any

from luthier.errors import Interrupted, UserError
from luthier.events import OnEvent, ignore
from luthier.recipe import Recipe
from luthier.records import Measured
from luthier.run import Run
from luthier.runtime import prepare

KEY = "LUTHIER_LAUNCH_KEY"  # the environment variable with the key of the connection


def train_apart(
    recipe: Recipe, run: Run, on_event: OnEvent = ignore, how: str = "luthier.train.fit:fit"
) -> Measured:
    """Call ``how`` (``module:function``) with recipe, run and a listener, in a new process.

    Ctrl-C and SIGTERM stop the run as they stop one in this process: it saves first.

    Raises:
        UserError, Interrupted: as the function does there; or the process ended without a result.
    """

    def lost(code: int) -> str:
        return (
            f"the process that trained {run.root} ended without a result (exit code {code}); "
            f"see {run.log_path}. Run the same command again: it resumes from the last checkpoint"
        )

    measured: Measured = call_apart(how, (recipe, run), on_event, lost)
    return measured


def call_apart(
    how: str,
    arguments: tuple[Any, ...],
    on_event: OnEvent,
    lost: Callable[[int], str],
    *,
    environment: Mapping[str, str] | None = None,
    started: Callable[["subprocess.Popen[bytes]"], None] = lambda _process: None,
) -> Any:
    """Call ``how`` (``module:function``) with ``arguments`` and a listener, in a new process.

    Args:
        lost: the message where the process ends without a result, of its exit code.
        environment: variables that it gets besides those of this process.
        started: called with the process. SIGTERM is passed on to it from the main thread alone.

    Raises:
        UserError, Interrupted: as the function does there; or the process ended without a result.
    """
    key = secrets.token_bytes(32)
    with tempfile.TemporaryDirectory(prefix="luthier-") as folder:
        address = None if sys.platform == "win32" else f"{folder}/events"
        with Listener(address, authkey=key) as listener:
            command = [sys.executable, "-P", "-m", "luthier.train.launch", str(listener.address)]
            variables = {**os.environ, **(environment or {}), KEY: key.hex()}
            process = subprocess.Popen(command, env=variables, stdin=subprocess.DEVNULL)
            started(process)
            # A process that ends before it connects would leave us waiting for ever.
            threading.Thread(
                target=_wake_listener, args=(process, listener.address, key), daemon=True
            ).start()
            with _signals_passed_on(process), listener.accept() as connection:
                with suppress(OSError):  # it is gone already
                    connection.send((how, arguments))
                outcome = relay(connection, on_event)
                code = _wait(process)
    if isinstance(outcome, Ended):
        raise UserError(lost(code))
    if isinstance(outcome, BaseException):
        raise outcome
    return outcome


class Ended:
    """The process ended before it sent a result."""


def _wake_listener(process: "subprocess.Popen[bytes]", address: Any, key: bytes) -> None:
    process.wait()
    with suppress(OSError, EOFError), Client(address, authkey=key):
        pass


def relay(connection: Connection, on_event: OnEvent) -> Any:
    """Pass on events until the result comes; ``Ended`` where the process ended before it."""
    while True:
        try:
            kind, value = connection.recv()
        except (EOFError, OSError):
            return Ended()
        except KeyboardInterrupt:  # the run got it too, and is saving
            continue
        if kind == "event":
            on_event(value)
        else:
            return value


def _wait(process: "subprocess.Popen[bytes]") -> int:
    while True:
        with suppress(KeyboardInterrupt):
            return process.wait()


@contextmanager
def _signals_passed_on(process: "subprocess.Popen[bytes]") -> Iterator[None]:
    """SIGTERM, which unlike Ctrl-C is for one process, is passed on to the run, which saves and ends."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def main() -> None:
    """The process that trains."""
    prepare()
    key = bytes.fromhex(os.environ.pop(KEY))
    with Client(sys.argv[1], authkey=key) as connection:
        how, arguments = connection.recv()
        module, _, function = how.partition(":")
        outcome: Any
        try:
            outcome = getattr(import_module(module), function)(
                *arguments, lambda event: connection.send(("event", event))
            )
        except (UserError, Interrupted) as error:
            outcome = error
        connection.send(("result", outcome))


if __name__ == "__main__":
    main()
