"""Upload against a stand-in of the hub's HTTP interface, by the real client."""

import base64
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub.constants as hub_constants
import pytest

from luthier.errors import UserError
from luthier.export.push import push


@dataclass
class Hub:
    address: str
    status: int = 200
    created: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    tokens: set[str | None] = field(default_factory=set)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    made = Hub("")

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length)
            made.tokens.add(self.headers.get("Authorization"))
            if made.status != 200:
                self.answer({"error": "no"}, made.status)
            elif self.path == "/api/repos/create":
                made.created.append(json.loads(body))
                self.answer({"url": f"{made.address}/me/tiny", "name": "me/tiny"})
            elif self.path == "/api/validate-yaml":
                assert "luthier" in json.loads(body)["content"]
                self.answer({"errors": [], "warnings": []})
            elif "/preupload/" in self.path:
                asked = json.loads(body)["files"]
                self.answer(
                    {
                        "files": [
                            {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                            for f in asked
                        ]
                    }
                )
            elif "/commit/" in self.path:
                for line in body.splitlines():
                    entry = json.loads(line)
                    if entry["key"] == "file":
                        value = entry["value"]
                        made.files[value["path"]] = base64.b64decode(value["content"])
                self.answer({"commitUrl": f"{made.address}/me/tiny/commit/1", "commitOid": "1"})
            else:
                self.answer({"error": self.path}, 404)

        def do_GET(self) -> None:
            self.answer({"error": self.path}, 404)

        def answer(self, value: Any, status: int = 200) -> None:
            text = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *args: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    made.address = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr(hub_constants, "ENDPOINT", made.address)
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    yield made
    server.shutdown()
    server.server_close()
    thread.join(timeout=5)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "README.md").write_text("---\ntags: [luthier]\n---\n\n# tiny\n")
    (tmp_path / "out" / "tiny-q8_0.gguf").write_bytes(b"GGUF" + bytes(range(256)))
    return tmp_path / "out"


def test_every_file_arrives(hub: Hub, folder: Path) -> None:
    assert "me/tiny" in push(folder, "me/tiny")
    assert hub.files == {file.name: file.read_bytes() for file in folder.iterdir()}
    assert hub.created[0]["name"] == "tiny" and hub.created[0]["organization"] == "me"
    assert hub.created[0].get("private") is True or hub.created[0].get("visibility") == "private"
    assert "Bearer hf_test" in hub.tokens
    push(folder, "me/tiny", public=True)
    assert hub.created[1].get("private") is False or hub.created[1]["visibility"] == "public"


@pytest.mark.parametrize(("status", "message"), [(401, "hf auth login"), (403, "may\\s+write")])
def test_no_right_to_write(hub: Hub, folder: Path, status: int, message: str) -> None:
    hub.status = status
    with pytest.raises(UserError, match=message):
        push(folder, "me/tiny")
    assert folder.is_dir() and not hub.files


def test_a_wrong_name_and_no_hub(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="not a valid repository name"):
        push(folder, "not/a/name")
    monkeypatch.setattr(hub_constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="does not answer"):
        push(folder, "me/tiny")
