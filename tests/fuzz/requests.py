"""Requests to the server that no client would send, and what an answer to one must look like."""

import asyncio
import json
from typing import Any

import httpx2
from fastapi import FastAPI
from hypothesis import strategies as st

RIGHT = {"model": "one", "messages": [{"role": "user", "content": "hi"}], "temperature": 0}
PATHS = ("/v1/chat/completions", "/v1/completions")

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


def complete(given: dict[str, Any], model: str, tokens: int, path: str) -> tuple[str, bytes]:
    """Path and body of a request that is right but for ``given``."""
    body: dict[str, Any] = {"model": model, "max_tokens": tokens, **given}
    if path == PATHS[0]:
        body = {"messages": RIGHT["messages"], **body}
        body.pop("prompt", None)
    else:
        body = {"prompt": "hi", **body}
        body.pop("messages", None)
    return path, json.dumps(body).encode()


requests = st.builds(
    complete,
    st.fixed_dictionaries({}, optional=fields),
    st.sampled_from(["one", "one", "second", "nobody"]),
    st.integers(1, 4),
    st.sampled_from(PATHS),
)


def send(
    app: FastAPI, path: str, content: bytes, kind: str = "application/json", method: str = "POST"
) -> httpx2.Response:
    """The app's answer, without a socket; what the app raises is raised here."""

    async def go() -> httpx2.Response:
        transport = httpx2.ASGITransport(app, raise_app_exceptions=True)
        async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
            return await http.request(method, path, content=content, headers={"Content-Type": kind})

    return asyncio.run(go())


def check_answer(got: httpx2.Response, asked: bytes) -> None:
    """A whole answer, as a stream where one was asked for, or an error in OpenAI's form."""
    assert got.status_code in (200, 400, 404), got.text
    if got.status_code != 200:
        assert set(got.json()["error"]) == {"message", "type", "param", "code"}
    elif json.loads(asked).get("stream") in (True, "true", 1):
        assert got.text.endswith("data: [DONE]\n\n")
        assert '"error"' not in got.text
    else:
        assert got.json()["usage"]["completion_tokens"] >= 1


def is_right(app: FastAPI) -> bool:
    """Whether a plain question is answered, and nothing waits."""
    got = send(app, PATHS[0], json.dumps({**RIGHT, "max_tokens": 4}).encode())
    engine = app.state.engine
    return got.status_code == 200 and engine.running == engine.waiting == 0
