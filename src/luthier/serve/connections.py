"""Connections in bounds: how many, and how long one may do nothing."""

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from luthier.serve.limits import Limits

_RESERVED = 192  # files that the process needs besides its connections


def bounded_protocol(limits: Limits) -> type[asyncio.Protocol]:
    """uvicorn's HTTP with the bounds of ``limits``.

    A whole request has to arrive within ``idle_seconds`` of the connection, or of its first byte, and
    its answer has to be taken within ``seconds`` and as many more. Where all connections are taken,
    the one that has waited longest for a request makes room for a new one; where each is being
    answered, the new one is closed.
    """
    most = _most_connections(limits.connections)

    class Bounded(H11Protocol):
        _timer: asyncio.TimerHandle | None = None
        _timed: Any = None  # the request that the timer runs for, once it is here
        _waits_since = 0.0

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._waits_since = self.loop.time()
            self._allow(limits.idle_seconds)
            if len(self.connections) > most:
                # Itself where all others are being answered.
                waiting = [c for c in self.connections if isinstance(c, Bounded) and not c._arrived]
                min(waiting, key=lambda connection: connection._waits_since)._drop()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._look()

        def on_response_complete(self) -> None:
            self._waits_since = self.loop.time()
            self._stop()  # uvicorn's own time for a connection that is kept alive begins
            super().on_response_complete()
            if self._arrived:  # the next request was here already
                self._look()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop()
            super().connection_lost(exc)

        @property
        def _arrived(self) -> bool:
            """A whole request is here and is being answered."""
            return self.cycle is not None and not (
                self.cycle.response_complete or self.cycle.more_body
            )

        def _look(self) -> None:
            if self._arrived and self._timed is not self.cycle:
                self._timed = self.cycle
                self._allow(limits.seconds + limits.idle_seconds)
            elif self._timer is None:
                self._allow(limits.idle_seconds)

        def _allow(self, seconds: float) -> None:
            self._stop()
            self._timer = self.loop.call_later(seconds, self._drop)

        def _stop(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _drop(self) -> None:
            self._stop()
            self.connections.discard(self)
            self.transport.abort()

    return Bounded


def _most_connections(wanted: int) -> int:
    """``wanted``, or what the files that this process may open leave for connections."""
    try:
        import resource  # which Windows does not have
    except ImportError:
        return wanted
    soft: Any = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if soft == resource.RLIM_INFINITY:
        return wanted
    return max(1, min(wanted, soft - _RESERVED))
