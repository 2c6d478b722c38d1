"""Work beside the event loop that the end of the server does not wait for."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")

_MOST = 8


class Threads:
    """Runs functions on threads, a few at once.

    ``asyncio.to_thread`` would hold the process until the last of them returns: a long prompt or a
    large schema takes its time. These threads end with the process.
    """

    def __init__(self) -> None:
        self._free = asyncio.Semaphore(_MOST)

    async def run(self, function: Callable[[], T]) -> T:
        """What ``function`` returns, or raises."""
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()  # from now on nobody but the thread ends it

        def work() -> None:
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)

        async with self._free:
            threading.Thread(target=work, name="luthier-serve", daemon=True).start()
            return await asyncio.wrap_future(future)
