"""Servers for tests: on a thread of this process, or the command as a person starts it."""

import asyncio
import faulthandler
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import uvicorn
from openai import OpenAI

from luthier.serve.app import create_app
from luthier.serve.backend import Backend
from luthier.serve.limits import Limits
from luthier.serve.models import Models
from luthier.serve.server import configuration
from luthier.sockets import bind

KEY = "a key, kept"


@contextmanager
def running(
    models: Models,
    limits: Limits,
    key: str | None = None,
    adapters: Path | None = None,
    backend: Backend | None = None,
) -> Iterator[str]:
    """A server on a thread of this process; its address."""
    bound = bind("127.0.0.1", 0)
    limits = replace(limits, shutdown_seconds=min(5.0, limits.shutdown_seconds))
    app = create_app(models, limits, key, adapters, backend)
    server = uvicorn.Server(configuration(app, limits))
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
    if thread.is_alive():
        faulthandler.dump_traceback(all_threads=True)  # which of them does not end
        raise AssertionError("the server did not end within 20 seconds")


def client_of(url: str) -> OpenAI:
    """A client of a server at ``url`` that tries once."""
    return OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0, timeout=60)


@contextmanager
def started(*arguments: str | Path) -> Iterator[tuple[Any, str]]:
    """The command as a process, and the address it says it serves at."""
    ours = ["serve", "--engine", "own"]  # whatever else is installed
    command = [sys.executable, "-m", "luthier.cli.main", *ours, *map(str, arguments)]
    process = subprocess.Popen(
        [*command, "--port", "0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "COLUMNS": "200", "TEST_KEY": "k"},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+/v1", line)
        assert found, (line, process.stderr and process.stderr.read())
        yield process, found[0]
    finally:
        process.kill()
        process.wait(20)
