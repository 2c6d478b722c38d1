"""Connections that do nothing, or take their time, do not keep others out."""

import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import httpx2
import pytest
from serving import KEY, running

from luthier.serve.limits import Limits
from luthier.serve.models import Models
from luthier.serve.repeats import Repeats

HEAD = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n"


@contextmanager
def connected(url: str, count: int) -> Iterator[list[socket.socket]]:
    place = urlsplit(url)
    made = []
    try:
        for _ in range(count):
            made.append(socket.create_connection((place.hostname or "", place.port or 0), 20))
        yield made
    finally:
        for one in made:
            one.close()


def is_closed(one: socket.socket, seconds: float) -> bool:
    one.settimeout(seconds)
    try:
        return one.recv(1) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


def answers(url: str) -> bool:
    return httpx2.get(f"{url}/healthz", timeout=20).status_code == 200


def test_idle_connections_make_room(models: Models) -> None:
    with running(models, Limits(connections=8), KEY) as url:
        with connected(url, 40) as idle:
            assert answers(url)
            assert is_closed(idle[0], 20)  # the oldest first
            assert not is_closed(idle[-1], 0.2)
        assert answers(url)


def test_a_request_has_to_arrive(models: Models) -> None:
    """Nothing at all, half a head, and a body that never comes."""
    with running(models, Limits(idle_seconds=0.5), KEY) as url, connected(url, 3) as slow:
        slow[1].sendall(HEAD[:40].encode())
        slow[2].sendall(f"{HEAD}Content-Length: 100\r\n\r\n{{".encode())
        assert all(is_closed(one, 20) for one in slow)
        assert answers(url)


def test_the_end_waits_for_no_prompt(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    """One whose tokens are being counted on a thread when the server is stopped."""
    begun, released = threading.Event(), threading.Event()
    counting: list[threading.Thread] = []

    def encode(_prompt: object) -> list[int]:
        counting.append(threading.current_thread())
        begun.set()
        released.wait(60)
        return [5]

    monkeypatch.setattr(models.by_name["one"].speech, "encode", encode)
    body = '{"model": "one", "prompt": "hi"}'
    head = HEAD.replace("/chat", "") + "Content-Type: application/json\r\n"
    try:
        with running(models, Limits(shutdown_seconds=1), KEY) as url, connected(url, 1) as (one,):
            one.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
            assert begun.wait(20)
        (thread,) = counting
        assert thread.is_alive()
        assert thread.daemon  # nor does the process wait for it
    finally:
        released.set()


def test_drops_of_a_request_do_not_keep_it_alive(models: Models) -> None:
    with running(models, Limits(idle_seconds=0.6), KEY) as url, connected(url, 1) as (one,):
        closed = False
        for letter in HEAD[:60]:
            try:
                one.sendall(letter.encode())
            except OSError:
                closed = True
                break
            time.sleep(0.05)
        assert closed or is_closed(one, 20)


def test_kept_alive_and_pipelined_requests_are_answered(models: Models) -> None:
    request = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with running(models, Limits(idle_seconds=5), KEY) as url, connected(url, 1) as (one,):
        one.sendall(request * 3)
        time.sleep(0.2)
        one.sendall(request)
        got = b""
        while got.count(b"200 OK") < 4:
            got += one.recv(4096)
        with httpx2.Client(base_url=url) as client:
            assert [client.get("/healthz").status_code for _ in range(5)] == [200] * 5


def test_the_log_does_not_repeat_itself(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from luthier.serve import repeats

    now = [100.0]
    monkeypatch.setattr(repeats.time, "monotonic", lambda: now[0])
    logger = logging.getLogger("test.repeats")
    logger.addFilter(Repeats())
    for _ in range(13_418):
        logger.error("socket.accept() out of system resource")
    logger.error("something else")
    now[0] += 61
    logger.error("socket.accept() out of system resource")
    texts = [record.getMessage() for record in caplog.records]
    assert texts[:4] == ["socket.accept() out of system resource"] * 3 + ["something else"]
    assert texts[4:] == [
        "socket.accept() out of system resource (and 13415 times more in the last minute)"
    ]
