"""Requests that no client would send: the server answers every one, and is right afterwards."""

import json
from collections.abc import Iterator

import pytest
from fastapi import FastAPI
from fuzz.requests import anything, check_answer, is_right, requests, send
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luthier.serve.app import create_app
from luthier.serve.limits import Limits
from luthier.serve.models import Models


@pytest.fixture(scope="module")
def app(models: Models) -> Iterator[FastAPI]:
    made = create_app(models, Limits(new_tokens=8, batch=4, choices=4))
    yield made
    made.state.engine.close()


@settings(
    max_examples=700, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)
@given(requests)
def test_odd_fields(app: FastAPI, request_: tuple[str, bytes]) -> None:
    path, content = request_
    check_answer(send(app, path, content), content)


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
    got = send(app, path, content, kind, method)
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
