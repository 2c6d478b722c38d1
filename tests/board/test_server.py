"""The board over HTTP: who gets in, what files it gives, and how it ends."""

import base64
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from boards import Served, board

pytest.importorskip("nicegui", reason="the board needs the extra 'board'")
httpx = pytest.importorskip("httpx")

EVIL = "<img src=x onerror=alert(1)><script>alert(2)</script>"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("board") / "runs"
    root = folder / "first"
    root.mkdir(parents=True)
    (root / "recipe.yaml").write_text("model: {source: m}\ndata: {train: d}\n")
    (root / "report.html").write_text(f"<title>report</title>{EVIL}")
    (root / "page.svg").write_text("<svg/>")
    (folder.parent / "secret.txt").write_text("secret")
    (root / "link.txt").symlink_to(folder.parent / "secret.txt")
    return folder


@pytest.fixture(scope="module")
def served(runs: Path) -> Iterator[Served]:
    with board(runs) as found:
        yield found


@pytest.fixture
def client(served: Served) -> Iterator[object]:
    with httpx.Client(base_url=served.root, follow_redirects=True, trust_env=False) as found:
        assert found.get(served.address).status_code == 200
        yield found


def test_nothing_is_served_without_the_token(served: Served) -> None:
    assert urlsplit(served.address).hostname == "127.0.0.1"
    for path in (
        "/",
        "/run/first",
        "/rows",
        "/file/first/recipe.yaml",
        "/report/first",
        "/_nicegui_ws/socket.io/",
    ):
        assert httpx.get(served.root + path, trust_env=False).status_code == 403, path


def test_pages_and_files_of_a_run(client: "httpx.Client") -> None:
    for path in ("/", "/run/first", "/new", "/compare", "/sweep", "/advise", "/chat"):
        found = client.get(path)
        assert found.status_code == 200, path
        assert "script-src-attr 'none'" in found.headers["content-security-policy"]
    assert client.get("/file/first/recipe.yaml").text.startswith("model:")
    assert client.get("/file/first/recipe.yaml").headers["content-type"].startswith("text/plain")
    assert client.get("/file/first/report.html").headers["content-type"].startswith("text/plain")
    assert client.get("/file/first/page.svg").headers["content-disposition"] == "attachment"
    # A report may be of a stranger: it is shown without scripts, and without the board's origin.
    policy = client.get("/report/first").headers["content-security-policy"]
    assert policy.startswith("sandbox;") and "allow" not in policy and "script-src" not in policy


@pytest.mark.parametrize(
    "path",
    [
        "/file/first/link.txt",
        "/file/first/..%2F..%2Fsecret.txt",
        "/file/first//etc/passwd",
        "/file/..%2F..%2Fetc/passwd",
        "/file/first/%2e%2e/%2e%2e/secret.txt",
        "/report/%2e%2e%2fsecret.txt",
        "/file/sweep:..%2F..%2F/secret.txt",
        "/report/sweep:..",
        "/_nicegui/3/static/..%2f..%2f..%2fsecret.txt",
    ],
)
def test_no_path_leads_out_of_the_runs(client: "httpx.Client", path: str) -> None:
    found = client.get(path)
    assert found.status_code in (403, 404)
    assert "secret\n" not in found.text and "root:" not in found.text and found.text != "secret"


def handshake(served: Served, cookie: str, **headers: str) -> str:
    """The first line of the answer to a WebSocket's opening."""
    host = urlsplit(served.root).netloc
    given = {
        "Host": host,
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": base64.b64encode(os.urandom(16)).decode(),
        "Sec-WebSocket-Version": "13",
        "Cookie": cookie,
        **headers,
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in given.items())
    parts = urlsplit(served.root)
    with socket.create_connection((parts.hostname, parts.port), timeout=10) as link:
        link.sendall(
            f"GET /_nicegui_ws/socket.io/?EIO=4&transport=websocket HTTP/1.1\r\n{lines}\r\n".encode()
        )
        return link.recv(4096).decode("latin-1").partition("\r\n")[0]


def test_a_page_of_another_site_cannot_open_the_push_channel(
    served: Served, client: "httpx.Client"
) -> None:
    cookie = "; ".join(f"{name}={value}" for name, value in client.cookies.items())
    assert " 101 " in handshake(served, cookie, Origin=served.root)
    assert " 403 " in handshake(served, cookie, Origin="http://evil.example")
    assert " 403 " in handshake(served, cookie, Origin="http://127.0.0.1:1")
    assert " 403 " in handshake(served, cookie, Host="evil.example", Origin="http://evil.example")
    assert " 403 " in handshake(served, "", Origin=served.root)


def test_ctrl_c_ends_the_board(runs: Path) -> None:
    with board(runs) as found:
        found.process.send_signal(signal.SIGINT)
        assert found.process.wait(30) in (0, 130)
