"""Requests that no client would send: the server answers every one, and is right afterwards."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luthier.serve.app import create_app
from luthier.serve.limits import Limits
from luthier.serve.models import Models

RIGHT = {"model": "one", "messages": [{"role": "user", "content": "hi"}], "temperature": 0}

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)
message = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "system", "assistant", "tool", "developer"])},
    optional={
        "content": st.text(max_size=40) | anything,
        "name": anything,
        "tool_calls": anything,
    },
)
numbers = st.integers(-3, 5) | st.floats(-1, 2) | anything
fields = {
    "messages": st.lists(message, max_size=3) | anything,
    "prompt": st.text(max_size=30) | st.lists(st.integers(-2, 800), max_size=5) | anything,
    "temperature": numbers,
    "top_p": numbers,
    "top_k": numbers,
    "repetition_penalty": numbers,
    "presence_penalty": numbers,
    "frequency_penalty": numbers,
    "logit_bias": st.dictionaries(st.integers(-2, 800).map(str), st.floats(-200, 200), max_size=3),
    "seed": numbers,
    "n": numbers,
    "stop": st.text(max_size=2) | st.lists(st.text(max_size=2), max_size=4) | anything,
    "stream": st.booleans() | anything,
    "stream_options": st.just({"include_usage": True}) | anything,
    "logprobs": st.booleans() | numbers,
    "top_logprobs": numbers,
    "response_format": st.just({"type": "json_object"})
    | st.fixed_dictionaries(
        {"type": st.just("json_schema"), "json_schema": st.fixed_dictionaries({"schema": anything})}
    )
    | anything,
    "unknown": anything,
}
bodies = st.builds(
    lambda given, model, tokens: {"model": model, "max_tokens": tokens, **given},
    st.fixed_dictionaries({}, optional=fields),
    st.sampled_from(["one", "one", "second", "nobody"]),
    st.integers(1, 4),
)


@pytest.fixture(scope="module")
def app(models: Models) -> Iterator[FastAPI]:
    made = create_app(models, Limits(new_tokens=8, batch=4, choices=4))
    yield made
    made.state.engine.close()


async def post(app: FastAPI, path: str, content: bytes, kind: str) -> httpx2.Response:
    transport = httpx2.ASGITransport(app, raise_app_exceptions=True)
    async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
        return await http.post(path, content=content, headers={"Content-Type": kind})


def send(app: FastAPI, path: str, content: bytes, kind: str = "application/json") -> Any:
    return asyncio.run(post(app, path, content, kind))


def is_right(app: FastAPI) -> bool:
    got = send(app, "/v1/chat/completions", json.dumps({**RIGHT, "max_tokens": 4}).encode())
    return got.status_code == 200 and app.state.engine.running == app.state.engine.waiting == 0


@settings(
    max_examples=700, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)
@given(bodies, st.sampled_from(["/v1/chat/completions", "/v1/completions"]))
def test_odd_fields(app: FastAPI, body: dict[str, Any], path: str) -> None:
    if path.endswith("chat/completions"):
        body = {"messages": RIGHT["messages"], **body}
        body.pop("prompt", None)
    else:
        body = {"prompt": "hi", **body}
        body.pop("messages", None)
    got = send(app, path, json.dumps(body).encode())
    assert got.status_code in (200, 400, 404), got.text
    if got.status_code != 200:
        assert set(got.json()["error"]) == {"message", "type", "param", "code"}
    elif body.get("stream") in (True, "true", 1):
        assert got.text.endswith("data: [DONE]\n\n")
        assert '"error"' not in got.text
    else:
        assert got.json()["usage"]["completion_tokens"] >= 1


@settings(
    max_examples=300, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)
@given(
    st.binary(max_size=60) | anything.map(lambda value: json.dumps(value).encode()),
    st.sampled_from(["POST", "GET", "PUT"]),
    st.sampled_from(
        ["/v1/chat/completions", "/v1/completions", "/v1/models/x", "/v1/load_lora_adapter", "/x"]
    ),
    st.sampled_from(["application/json", "text/plain", "multipart/form-data; boundary=x", ""]),
)
def test_garbage(app: FastAPI, content: bytes, method: str, path: str, kind: str) -> None:
    async def go() -> httpx2.Response:
        transport = httpx2.ASGITransport(app, raise_app_exceptions=True)
        async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
            return await http.request(method, path, content=content, headers={"Content-Type": kind})

    got = asyncio.run(go())
    assert got.status_code in (400, 403, 404, 405), got.text
    assert set(got.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    "content",
    [b"[" * 100_000, b'{"model": ' + b"9" * 10_000 + b"}", b'{"model": "\\ud800"}', b"\xff\xfe", b"",
     b'{"messages": [], "messages": 1e999}', b"null"],
)  # fmt: skip
def test_broken_json(app: FastAPI, content: bytes) -> None:
    got = send(app, "/v1/chat/completions", content)
    assert got.status_code in (400, 404), got.text


def test_it_is_right_after_all_that(app: FastAPI) -> None:
    assert is_right(app)
