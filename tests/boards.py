"""A board that runs, and a browser that looks at it."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

CHROMIUM = Path("/usr/bin/chromium")
_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
# What a stranger might call a run, and let it say.
EVIL = "<img src=x onerror=alert(1)>"
SCRIPT = "<script>alert(2)</script> ${alert(3)} `${alert(4)}` {{alert(5)}} \" onload=alert(6) '"

_LONGEST = 600  # seconds that a board of a test lives


@dataclass(frozen=True)
class Served:
    """A board: the address with its token, and the one without."""

    address: str
    process: "subprocess.Popen[str]"

    @property
    def root(self) -> str:
        parts = urlsplit(self.address)
        return f"{parts.scheme}://{parts.netloc}"


@contextmanager
def board(runs: Path, *args: str | Path) -> Iterator[Served]:
    """`luthier board` over ``runs``, ended by its process id."""
    command = [
        sys.executable,
        "-m",
        "luthier.cli.main",
        "board",
        "--runs",
        str(runs),
        "--port",
        "0",
    ]
    process = subprocess.Popen(
        [*command, *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    watchdog = threading.Timer(_LONGEST, process.kill)
    watchdog.start()
    try:
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line)
            if "http://" in line:
                yield Served(line[line.index("http://") :].strip(), process)
                return
        raise AssertionError("".join(said))
    finally:
        watchdog.cancel()
        process.send_signal(signal.SIGTERM)
        try:
            process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


@contextmanager
def browser(**page: Any) -> Iterator[Any]:
    """A page of Debian's Chromium.

    Attributes of the page besides Playwright's: ``seen`` (hosts that it asked), ``errors`` (of
    scripts), ``dialogs`` (that a script opened).
    """
    from playwright.sync_api import sync_playwright

    with (
        tempfile.TemporaryDirectory(prefix="luthier-chromium-") as folder,
        sync_playwright() as play,
    ):
        context = play.chromium.launch_persistent_context(
            folder,
            executable_path=str(CHROMIUM),
            args=list(_FLAGS),
            viewport={"width": 1280, "height": 900},
            **page,
        )
        tab = context.pages[0]
        tab.set_default_timeout(90_000)  # machines that test are busy
        tab.seen, tab.errors, tab.dialogs = set(), [], []
        context.on("request", lambda request: tab.seen.add(urlsplit(request.url).hostname))
        tab.on("websocket", lambda socket: tab.seen.add(urlsplit(socket.url).hostname))
        tab.on("pageerror", lambda error: tab.errors.append(str(error)))

        def dismiss(dialog: Any) -> None:
            tab.dialogs.append(dialog.message)
            dialog.dismiss()

        tab.on("dialog", dismiss)
        try:
            yield tab
        finally:
            context.close()


def violations(tab: Any, axe: str) -> list[str]:
    """What axe finds on a page: rule, what it asks, and where."""
    tab.evaluate(axe)
    found = tab.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{one['id']} ({one['impact']}): {node['target']} {node['html'][:120]}"
        for one in found["violations"]
        for node in one["nodes"][:3]
    ]


def axe_source() -> str | None:
    """axe-core, from the npm registry; None where it cannot be fetched."""
    import tarfile

    cache = Path.home() / ".cache" / "luthier-tests"
    archive = cache / "axe-core-4.14.1.tgz"
    if not archive.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        try:
            subprocess.run(
                ["npm", "pack", "axe-core@4.14.1"],
                cwd=cache,
                check=True,
                capture_output=True,
                timeout=60,
            )
        except (OSError, subprocess.SubprocessError):
            return None
    with tarfile.open(archive) as files:
        member = files.extractfile("package/axe.min.js")
        return member.read().decode("utf-8") if member is not None else None


def wait_until(true: Callable[[], bool], what: str, seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if true():
            return
        time.sleep(0.1)
    raise AssertionError(f"not within {seconds} s: {what}")
