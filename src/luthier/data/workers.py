"""Work on many rows, in forked processes: Python's part of it then runs on every core."""

import io
import os
import pickle
import signal
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import starmap
from typing import Any, TypeVar

from luthier.errors import UserError

T = TypeVar("T")

_LENGTH = struct.Struct("<q")
_MOST = 32  # workers


def in_workers(work: Callable[[int, int], T], count: int, size: int) -> Iterator[T]:
    """``work(start, end)`` of each block of ``size`` of the numbers below ``count``, in order.

    On Linux each core has a worker, forked when the first block is asked for: it sees what was in
    memory then (buffered writes of files too: flush them first), and what it returns or raises is pickled. A worker works ahead by what a pipe holds.
    Elsewhere, on one core, for two blocks or fewer, and with TOKENIZERS_PARALLELISM=false, this
    process does the work.

    Raises:
        UserError: a worker was killed.
    """
    blocks = [(start, min(start + size, count)) for start in range(0, count, size)]
    workers = min(_cores(), len(blocks), _MOST)
    if workers < 2 or len(blocks) <= 2:
        for block in blocks:
            yield work(*block)
        return
    started: list[tuple[int, io.BufferedReader]] = []
    try:
        for first in range(workers):
            own = partial(starmap, work, blocks[first::workers])
            started.append(_fork(own, [pipe for _, pipe in started]))
        for number in range(len(blocks)):
            done, value = _received(started[number % workers][1])
            if not done:
                raise value
            yield value
    finally:
        for each in started:
            _end(*each)


class Ahead(Iterator[T]):
    """The values of an endless iterator, each made while the one before is in use.

    On Linux a forked process makes them, from now on: it sees what is in memory now, but for open
    files. It waits with one value until that is asked for. Elsewhere, and with
    TOKENIZERS_PARALLELISM=false, this process makes each when it is asked for.

    Raises:
        UserError: the process was killed. Besides, what the iterator raises.
    """

    def __init__(self, values: Callable[[], Iterator[T]]) -> None:
        self._owner = os.getpid()  # a process that is forked later has no say
        self._started: tuple[int, io.BufferedReader] | None = None
        self._values: Iterator[T] | None = None
        if sys.platform == "linux" and _parallel():
            self._started = _fork(values, [], alone=True)
        else:
            self._values = values()

    def __next__(self) -> T:
        if self._values is not None:
            return next(self._values)
        if self._started is None:
            raise StopIteration
        done, value = _received(self._started[1])
        if not done:
            raise value
        made: T = value
        return made

    def close(self) -> None:
        """End the process, where there is one."""
        self._values = None
        if self._started is not None and os.getpid() == self._owner:
            _end(*self._started)
            self._started = None

    def __del__(self) -> None:
        self.close()


def _end(pid: int, pipe: io.BufferedReader) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    pipe.close()
    with suppress(ChildProcessError):
        os.waitpid(pid, 0)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" and _parallel() else 1


def _parallel() -> bool:
    asked = os.environ.get("TOKENIZERS_PARALLELISM", "")
    return asked.lower() not in ("false", "0", "no", "off")


def _fork(
    values: Callable[[], Iterator[Any]], others: list[io.BufferedReader], *, alone: bool = False
) -> tuple[int, io.BufferedReader]:
    """A process that makes ``values``, and the pipe that they come through.

    Args:
        alone: it keeps no open file but its standard ones, so that one that outlives its parent for a
            moment holds neither the lock of a run nor a connection to other processes; and a signal to
            all processes of a job doesn't end it while its parent may still need it.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        return pid, os.fdopen(reading, "rb")
    try:
        # The parent says what a signal means; a parent that is gone closes the pipe.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN if alone else signal.SIG_DFL)
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads did not come along
        os.close(reading)
        for pipe in others:
            pipe.close()
        if alone:
            os.closerange(3, writing)
            os.closerange(writing + 1, os.sysconf("SC_OPEN_MAX"))
        with os.fdopen(writing, "wb") as out:
            following = values()
            while told := _told(following):
                out.write(_LENGTH.pack(len(told)))
                out.write(told)
                out.flush()
    finally:
        os._exit(0)  # nothing of the parent's is closed or written here


def _told(values: Iterator[Any]) -> bytes:
    """The next of ``values``, or its error, as it is sent; nothing once there is none."""
    try:
        return pickle.dumps((True, next(values)), pickle.HIGHEST_PROTOCOL)
    except StopIteration:
        return b""
    except BaseException as error:
        try:
            return pickle.dumps((False, error))
        except Exception:  # it holds what cannot be sent
            return pickle.dumps((False, RuntimeError(repr(error))))


def _received(pipe: io.BufferedReader) -> tuple[bool, Any]:
    head = pipe.read(_LENGTH.size)
    told = pipe.read(_LENGTH.unpack(head)[0]) if len(head) == _LENGTH.size else b""
    if not told:
        raise UserError(
            "a process that tokenised rows was killed, perhaps for want of memory; "
            "TOKENIZERS_PARALLELISM=false does the work in one process"
        )
    found: tuple[bool, Any] = pickle.loads(told)  # noqa: S301  # of a process that this one forked
    return found
