"""The process around the board."""

import secrets
import socket
from collections.abc import Callable

import uvicorn

from luthier.board.app import create_app
from luthier.board.folders import Folders

_PATIENCE = 3  # seconds that open connections get at the end


def serve(folders: Folders, bound: socket.socket, on_ready: Callable[[str], None]) -> None:
    """Answer until SIGTERM or SIGINT; runs that were started go on without the board.

    Args:
        on_ready: called with the address to open, its token included.
    """
    host, port = bound.getsockname()[:2]
    token = secrets.token_urlsafe(24)
    config = uvicorn.Config(
        create_app(folders, token, port),
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=_PATIENCE,
    )
    _Server(config, lambda: on_ready(f"http://{host}:{port}/?token={token}")).run(sockets=[bound])


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_ready()
