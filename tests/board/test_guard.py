"""Who may reach the board: hosts, origins, token and cookie."""

import asyncio
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the board needs the extra 'board'")

from luthier.board.guard import Guard, is_this_machine

TOKEN = "secret-token"
HOST = "127.0.0.1:8600"


class Inner:
    """The application behind the guard."""

    def __init__(self) -> None:
        self.scopes: list[dict[str, Any]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scopes.append(scope)
        if scope["type"] == "websocket":
            await send({"type": "websocket.accept"})
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"inside"})


class Client:
    def __init__(self) -> None:
        self.inner = Inner()
        self.guard = Guard(self.inner, TOKEN, 8600)

    def ask(
        self,
        path: str = "/",
        query: str = "",
        method: str = "GET",
        kind: str = "http",
        **headers: str,
    ) -> tuple[int, dict[str, str]]:
        """Status and headers; of a WebSocket 101 where it was accepted, else 403."""
        sent: list[dict[str, Any]] = []
        given = {"host": HOST, **{name.replace("_", "-"): value for name, value in headers.items()}}
        scope = {
            "type": kind,
            "path": path,
            "method": method,
            "query_string": query.encode(),
            "headers": [(k.encode(), v.encode()) for k, v in given.items()],
        }

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b""}

        async def send(message: Any) -> None:
            sent.append(message)

        asyncio.run(self.guard(scope, receive, send))  # type: ignore[arg-type]
        first = sent[0]
        if kind == "websocket":
            return (101 if first["type"] == "websocket.accept" else 403), {}
        return first["status"], {k.decode(): v.decode() for k, v in first["headers"]}

    def cookie(self) -> str:
        _, headers = self.ask(query=f"token={TOKEN}")
        return headers["set-cookie"].partition(";")[0]


def test_the_token_becomes_a_cookie_and_leaves_the_address() -> None:
    client = Client()
    assert client.ask()[0] == 403
    assert client.ask(query="token=wrong")[0] == 403
    status, headers = client.ask("/run/a b", f"token={TOKEN}&x=1")
    assert (status, headers["location"]) == (303, "/run/a%20b?x=1")
    told = headers["set-cookie"].lower()
    assert "httponly" in told and "samesite=strict" in told
    assert TOKEN not in told
    assert client.ask(cookie=client.cookie())[0] == 200
    assert client.ask(cookie="luthier-board-8600=guess")[0] == 403


def test_the_way_to_the_cookie_leads_to_no_other_site() -> None:
    for path in ("//evil.example/x", "/\\evil.example", "///evil.example"):
        _, headers = Client().ask(path, f"token={TOKEN}")
        assert headers["location"].startswith("/evil.example"), headers


def test_another_host_name_is_refused_whatever_it_knows() -> None:
    """DNS rebinding: the page of a stranger, whose name points here."""
    client = Client()
    cookie = client.cookie()
    for host in ("evil.example", "evil.example:8600", "127.0.0.1.evil.example", "0.0.0.0:8600", ""):
        assert client.ask(host=host, cookie=cookie)[0] == 403, host
        assert client.ask(query=f"token={TOKEN}", host=host)[0] == 403, host
    for host in ("localhost:9000", "127.0.0.1", "[::1]:8600"):  # a tunnel has a port of its own
        assert client.ask(host=host, cookie=cookie)[0] == 200, host


@pytest.mark.parametrize("kind", ["http", "websocket"])
def test_pages_of_other_origins_are_refused(kind: str) -> None:
    client = Client()
    cookie = client.cookie()
    good = 101 if kind == "websocket" else 200
    assert client.ask(kind=kind, cookie=cookie, origin=f"http://{HOST}")[0] == good
    for origin in ("http://evil.example", "http://127.0.0.1:9999", "null", f"https://{HOST}"):
        assert client.ask(kind=kind, cookie=cookie, origin=origin)[0] == 403, origin
    assert client.ask(kind=kind, cookie=cookie, sec_fetch_site="same-site")[0] == 403
    assert client.ask(kind=kind, cookie=cookie, sec_fetch_site="cross-site")[0] == 403
    assert client.ask(kind=kind, sec_fetch_site="same-origin")[0] == 403  # no cookie
    # A link that a person follows shows him the page.
    link = {"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate"}
    assert client.ask(cookie=cookie, sec_fetch_dest="document", **link)[0] == 200
    assert client.ask(cookie=cookie, sec_fetch_dest="iframe", **link)[0] == 403


def test_every_answer_forbids_other_places_and_scripts_in_attributes() -> None:
    client = Client()
    for headers in (client.ask()[1], client.ask(cookie=client.cookie())[1]):
        policy = headers["content-security-policy"]
        for rule in ("default-src 'self'", "script-src-attr 'none'", "frame-ancestors 'none'"):
            assert rule in policy
        assert headers["x-content-type-options"] == "nosniff"


def test_what_a_proxy_would_say_does_not_reach_the_pages() -> None:
    client = Client()
    client.ask(cookie=client.cookie(), x_forwarded_prefix='/"><script>')
    names = [name for name, _ in client.inner.scopes[-1]["headers"]]
    assert b"x-forwarded-prefix" not in names


def test_only_this_machine_calls_itself_so() -> None:
    assert is_this_machine("127.9.9.9:1")
    for host in ("10.0.0.1", "example.com", "[::ffff:10.0.0.1]", "[", "a b"):
        assert not is_this_machine(host)
