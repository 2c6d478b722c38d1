"""A server on a thread of the test's own process."""

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import uvicorn

from luthier.serve.app import create_app
from luthier.serve.limits import Limits
from luthier.serve.models import Models
from luthier.serve.server import configuration
from luthier.sockets import bind

KEY = "a key, kept"


@contextmanager
def running(
    models: Models, limits: Limits, key: str | None = None, adapters: Path | None = None
) -> Iterator[str]:
    """A server on a thread of this process; its address."""
    bound = bind("127.0.0.1", 0)
    limits = replace(limits, shutdown_seconds=5)
    server = uvicorn.Server(configuration(create_app(models, limits, key, adapters), limits))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([bound])))
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
        bound.close()
    assert not thread.is_alive()
