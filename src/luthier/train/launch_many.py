"""Several processes of this machine that train together, started by torchrun's own agent.

    python -m luthier.train.launch_many ADDRESS

is each of them. Rank 0 sends its events and the result to the process that asked for the run.
"""

import logging
import os
import secrets
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from multiprocessing.connection import Client, Connection, Listener
from typing import Any

from luthier.errors import Interrupted, UserError
from luthier.events import OnEvent, ignore
from luthier.recipe import Recipe
from luthier.records import Measured
from luthier.run import Run
from luthier.runtime import prepare, world
from luthier.train.launch import KEY, Ended, relay

_SAVING = 3600  # seconds that processes have to save when one of them has failed


def train_together(
    recipe: Recipe,
    run: Run,
    count: int,
    on_event: OnEvent = ignore,
    how: str = "luthier.train.fit:fit",
) -> Measured:
    """Call ``how`` (``module:function``) with recipe, run and a listener, in ``count`` processes.

    Ctrl-C and SIGTERM stop the run as they stop one of one process: it saves first.

    Raises:
        UserError, Interrupted: as the function does there; or the processes ended without a result.
    """
    key = secrets.token_bytes(32)
    with tempfile.TemporaryDirectory(prefix="luthier-") as folder:
        address = None if sys.platform == "win32" else f"{folder}/events"
        with Listener(address, backlog=count + 1, authkey=key) as listener:
            agent = _Agent(count, listener.address, key)
            processes: dict[int, int] = {}
            connections: dict[int, Connection] = {}
            with _signals_passed_on(processes):
                agent.start()
                while len(connections) < count:
                    connection = listener.accept()
                    rank, process = connection.recv()
                    if rank < 0:  # the agent has ended
                        break
                    processes[rank], connections[rank] = process, connection
                    connection.send((how, (recipe, run)))
                outcome = relay(connections[0], on_event) if 0 in connections else Ended()
                listener.close()  # the agent calls there at its end
                agent.join()
    if isinstance(outcome, Ended):
        raise UserError(
            f"{agent.failure or 'the processes ended without a result'}; see {run.log_path}. Run the "
            "same command again: it resumes from the last checkpoint"
        )
    if isinstance(outcome, BaseException):
        raise outcome
    measured: Measured = outcome
    return measured


class _Agent(threading.Thread):
    """Starts the processes, and ends all when one of them fails: what `torchrun` runs.

    In a thread, so that signals come to us: the agent would end processes that have not saved yet.

    Attributes:
        failure: how the first of them failed, once all have ended.
    """

    def __init__(self, count: int, address: Any, key: bytes) -> None:
        super().__init__(daemon=True)
        self.count, self.address, self.key = count, address, key
        self.failure: str | None = None

    def run(self) -> None:
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
        from torch.distributed.launcher.api import LaunchConfig, elastic_launch

        logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=self.count,
            run_id=secrets.token_hex(8),
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=0,
            shutdown_timeout=_SAVING,
        )
        command = ["-P", "-m", "luthier.train.launch_many", str(self.address)]
        try:
            with _environment(self._variables()):
                elastic_launch(config, sys.executable)(*command)
        except ChildFailedError as error:
            rank, first = error.get_first_failure()
            self.failure = f"rank {rank} (process {first.pid}) ended {_how(first.exitcode)}"
        except Exception as error:
            self.failure = f"the processes could not be started: {error}"
        finally:  # who waits for processes that never came goes on
            with suppress(OSError, EOFError), Client(self.address, authkey=self.key) as connection:
                connection.send((-1, 0))

    def _variables(self) -> dict[str, str]:
        given = {KEY: self.key.hex()}
        if "OMP_NUM_THREADS" not in os.environ:
            given["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // self.count))
        return given


def _how(code: int) -> str:
    if code >= 0:
        return f"with exit code {code}"
    return f"by {signal.Signals(-code).name}"


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """``variables`` for the processes that are started in this block; the agent takes no others."""
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in variables:
            os.environ.pop(name, None)


@contextmanager
def _signals_passed_on(processes: dict[int, int]) -> Iterator[None]:
    """Ctrl-C and SIGTERM go to all of ``processes``, which save and end."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def pass_on(number: int, _frame: Any) -> None:
        if not processes:  # nothing has begun
            raise KeyboardInterrupt
        for process in processes.values():
            with suppress(ProcessLookupError):
                os.kill(process, number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main() -> None:
    """A process that trains."""
    prepare()
    key = bytes.fromhex(os.environ.pop(KEY))
    place = world()
    with Client(sys.argv[1], authkey=key) as connection:
        connection.send((place.rank, os.getpid()))
        how, arguments = connection.recv()
        module, _, function = how.partition(":")

        def tell(event: Any) -> None:
            connection.send(("event", event))

        outcome: Any
        try:
            outcome = getattr(import_module(module), function)(
                *arguments, tell if place.rank == 0 else ignore
            )
        except (UserError, Interrupted) as error:
            outcome = error
        if place.rank == 0:
            connection.send(("result", outcome))


if __name__ == "__main__":
    main()
