"""Work on many rows, in forked processes: Python's part of it then runs on every core."""

import io
import os
import pickle
import signal
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, TypeVar

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
        RuntimeError: a worker was killed.
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
            started.append(_fork(work, blocks[first::workers], [pipe for _, pipe in started]))
        for number in range(len(blocks)):
            done, value = _received(started[number % workers][1])
            if not done:
                raise value
            yield value
    finally:
        for pid, pipe in started:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            pipe.close()
            with suppress(ChildProcessError):
                os.waitpid(pid, 0)


def _cores() -> int:
    asked = os.environ.get("TOKENIZERS_PARALLELISM", "").lower() not in ("false", "0", "no", "off")
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" and asked else 1


def _fork(
    work: Callable[[int, int], Any], blocks: list[tuple[int, int]], others: list[io.BufferedReader]
) -> tuple[int, io.BufferedReader]:
    """A process that does ``blocks``, and the pipe that its results come through."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        return pid, os.fdopen(reading, "rb")
    try:
        # The parent says what a signal means; a parent that is gone closes the pipe.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads did not come along
        os.close(reading)
        for pipe in others:
            pipe.close()
        with os.fdopen(writing, "wb") as out:
            for block in blocks:
                _send(out, work, block)
    finally:
        os._exit(0)  # nothing of the parent's is closed or written here


def _send(out: io.BufferedWriter, work: Callable[[int, int], Any], block: tuple[int, int]) -> None:
    try:
        told = pickle.dumps((True, work(*block)), pickle.HIGHEST_PROTOCOL)
    except BaseException as error:
        try:
            told = pickle.dumps((False, error))
        except Exception:  # it holds what cannot be sent
            told = pickle.dumps((False, RuntimeError(repr(error))))
    out.write(_LENGTH.pack(len(told)))
    out.write(told)
    out.flush()


def _received(pipe: io.BufferedReader) -> tuple[bool, Any]:
    head = pipe.read(_LENGTH.size)
    told = pipe.read(_LENGTH.unpack(head)[0]) if len(head) == _LENGTH.size else b""
    if not told:
        raise RuntimeError(
            "a process that tokenised rows was killed, perhaps for want of memory; "
            "TOKENIZERS_PARALLELISM=false does the work in one process"
        )
    found: tuple[bool, Any] = pickle.loads(told)  # noqa: S301  # of a process that this one forked
    return found
