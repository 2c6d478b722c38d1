"""Work that takes longer than a page may wait: one piece at a time, in one thread.

One thread, as Transformers cannot be imported by two at once, and as two plans or two answers would
only slow each other down. It ends with the process, whatever it is at.
"""

import asyncio
import logging
import queue
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, ParamSpec, TypeVar

from luthier.errors import UserError

P = ParamSpec("P")
T = TypeVar("T")

log = logging.getLogger(__name__)

_waiting: "queue.SimpleQueue[Callable[[], None]]" = queue.SimpleQueue()
_started = threading.Lock()


async def work(do: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What ``do`` returns, once what was asked before is done.

    Raises:
        UserError: it raised one; or it failed otherwise, which the log of the board has in full.
    """
    if _started.acquire(blocking=False):
        threading.Thread(target=_work, name="board-work", daemon=True).start()
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def run() -> None:
        try:
            found = do(*args, **kwargs)
        except Exception as error:
            tell: Callable[[], Any] = partial(future.set_exception, _told(error))
        else:
            tell = partial(future.set_result, found)
        if not loop.is_closed():
            loop.call_soon_threadsafe(lambda: None if future.done() else tell())

    _waiting.put(run)
    return await future


def _told(error: Exception) -> UserError:
    if isinstance(error, UserError):
        return error
    log.error("the board failed", exc_info=error)
    return UserError(
        f"this failed ({type(error).__name__}: {error}); the board's terminal has more"
    )


def _work() -> None:
    while True:
        _waiting.get()()
