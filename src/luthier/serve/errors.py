"""Errors in OpenAI's form, which its clients turn into exceptions of their own."""

import json
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response


class ApiError(Exception):
    """Something to tell the client instead of an answer."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers
        self.body = {"message": message, "type": kind, "param": param, "code": code}

    def response(self) -> Response:
        return json_response({"error": self.body}, self.status, self.headers)


def json_response(
    value: Any, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """ASCII only: a client may have sent, and is told again, what is no valid Unicode."""
    content = json.dumps(value).encode("ascii")
    return Response(content, status, headers, media_type="application/json")


def failed(finish: str) -> ApiError | None:
    """The error of an answer that ended in ``finish``, if that is one."""
    if finish == "timeout":
        return ApiError(
            503,
            "the answer took longer than this server's time limit",
            kind="timeout",
            code="timeout",
        )
    if finish == "error":
        return ApiError(
            500, "the server failed to generate this answer; see its log", kind="server_error"
        )
    return None
