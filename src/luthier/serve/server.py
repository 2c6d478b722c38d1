"""The process around the application: address, sockets, signals."""

import logging
import socket
from collections.abc import Callable
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from luthier.errors import UserError
from luthier.serve.app import create_app
from luthier.serve.backend import Backend
from luthier.serve.connections import bounded_protocol
from luthier.serve.guard import is_loopback
from luthier.serve.limits import Limits
from luthier.serve.models import Models
from luthier.serve.repeats import Repeats

_BACKLOG = 64  # asyncio accepts so many before any of them is counted
_KEPT_ALIVE = 5  # seconds that a connection may wait for its next request


def check_address(host: str, api_key: str | None) -> None:
    """Raise unless ``host`` is this machine alone, or there is a key.

    Raises:
        UserError: anyone on the network could use the models.
    """
    if api_key is None and not is_loopback(host):
        raise UserError(
            f"anyone on the network can reach this server on {host}: set an API key "
            "(export LUTHIER_API_KEY=…, then --api-key-env LUTHIER_API_KEY), or use 127.0.0.1"
        )


def serve(
    models: Models,
    limits: Limits,
    bound: socket.socket,
    api_key: str | None,
    on_ready: Callable[[], None],
    adapters: Path | None = None,
    backend: Backend | None = None,
) -> None:
    """Answer until SIGTERM or SIGINT, then let running answers finish, within the limits' bound.

    Ends as uvicorn does, by the signal that came: SIGINT is a KeyboardInterrupt here.

    Args:
        adapters: clients may load adapters of runs in this folder; None: of none.
        backend: what makes the answers; None for our own engine.
    """
    app = create_app(models, limits, api_key, adapters, backend)
    config = configuration(app, limits)
    _Server(config, on_ready).run(sockets=[bound])


def configuration(app: FastAPI, limits: Limits) -> uvicorn.Config:
    """How uvicorn serves ``app``: bounded connections, and a log that does not repeat itself."""
    config = uvicorn.Config(
        app,
        http=bounded_protocol(limits),
        log_level="warning",
        access_log=False,
        server_header=False,
        backlog=_BACKLOG,
        timeout_keep_alive=_KEPT_ALIVE,
        timeout_graceful_shutdown=max(1, round(limits.shutdown_seconds)),
        h11_max_incomplete_event_size=64 << 10,
    )
    for name in ("asyncio", "uvicorn.error"):  # after uvicorn has set up its own
        logger = logging.getLogger(name)
        if not any(isinstance(found, Repeats) for found in logger.filters):
            logger.addFilter(Repeats())
    return config


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_ready()
