"""Chat templates come with models, from anyone: what one may take of this machine.

Transformers runs them in Jinja's sandbox: no attributes that lead out of it, no changes to what it is
given, ranges of 100,000 at most. Here are bounds for what a sandbox lets through: products that grow
without end, memory, and time.
"""

import mmap
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from transformers.utils import chat_template_utils

SECONDS = 10.0
_MEMORY = 2**28  # bytes beyond what the process has mapped
_LONGEST = 10_000_000  # characters or items that a product may make
_LARGEST = 2**64


class TooMuch(Exception):
    """A template ran too long."""


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """The sandbox of chat templates, with products and powers in bounds (Jinja's own hook)."""

    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**":
            raise SecurityError("the chat template computes a power, which is not allowed")
        for one, other in ((left, right), (right, left)):
            if isinstance(one, str | bytes | list | tuple) and isinstance(other, int):
                if len(one) * other > _LONGEST:
                    raise SecurityError(
                        f"the chat template repeats something {other:,} times, which is not allowed"
                    )
                break
            if isinstance(one, int) and abs(one) > _LARGEST:
                raise SecurityError(
                    "the chat template computes with very large numbers, which is not allowed"
                )
        return super().call_binop(context, operator, left, right)


# Transformers makes the sandbox of its templates from this name.
chat_template_utils.ImmutableSandboxedEnvironment = BoundedEnvironment  # type: ignore[attr-defined]

_statm = (0, -1)  # process and descriptor


@contextmanager
def bounded() -> Iterator[None]:
    """End what runs inside after 10 seconds, or where it asks for over 256 MiB, by an exception.

    Signals and limits belong to the main thread of a Linux process; elsewhere it does nothing.

    Raises:
        TooMuch, MemoryError: it took too much.
    """
    if not _possible():
        yield
        return
    import resource  # which Windows has not

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    ceiling = _mapped_bytes() + _MEMORY
    handler = signal.signal(signal.SIGALRM, _too_long)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        if soft == resource.RLIM_INFINITY or ceiling < soft:
            resource.setrlimit(resource.RLIMIT_AS, (ceiling, hard))
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _possible() -> bool:
    return (
        sys.platform.startswith("linux")
        and threading.current_thread() is threading.main_thread()
        and signal.getitimer(signal.ITIMER_REAL)[0] == 0
    )


def _too_long(_number: int, _frame: Any) -> None:
    raise TooMuch(f"it ran for over {SECONDS:.0f} seconds")


def _mapped_bytes() -> int:
    """What this process has mapped, read in about a microsecond: each rendering asks."""
    global _statm
    if _statm[0] != os.getpid():  # a forked process would read of its parent
        _statm = (os.getpid(), os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC))
    return int(os.pread(_statm[1], 64, 0).split()[0]) * mmap.PAGESIZE
