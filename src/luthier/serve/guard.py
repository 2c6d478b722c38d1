"""What every request passes first: the key, and a bound on its body."""

import hmac

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from luthier.serve.errors import ApiError

_OPEN = ("/healthz",)


class Guard:
    """ASGI middleware: 401 without the key, 413 for a body longer than ``body_limit`` bytes.

    A body that does not say its length is counted as it comes.
    """

    def __init__(self, app: ASGIApp, api_key: str | None, body_limit: int) -> None:
        self._app = app
        self._key = api_key.encode() if api_key is not None else None
        self._limit = body_limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        refused = self._refused(scope["path"], headers)
        if refused is not None:
            await refused.response()(scope, receive, send)
            return
        received = 0
        answered = False

        async def counted() -> Message:
            nonlocal received, answered
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._limit and not answered:
                raise _TooLong
            return message

        async def watched(message: Message) -> None:
            nonlocal answered
            answered = True
            await send(message)

        try:
            await self._app(scope, counted, watched)
        except _TooLong:
            await self._too_long().response()(scope, receive, send)

    def _refused(self, path: str, headers: Headers) -> ApiError | None:
        if self._key is not None and path not in _OPEN:
            scheme, _, given = headers.get("authorization", "").partition(" ")
            # Compared in the same time wherever the first difference is.
            same = hmac.compare_digest(given.strip().encode("utf-8", "replace"), self._key)
            if scheme.lower() != "bearer" or not same:
                return ApiError(
                    401,
                    "the API key is missing or wrong: send 'Authorization: Bearer KEY'",
                    code="invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )
        length = headers.get("content-length", "")
        if length.isascii() and length.isdigit() and int(length[:19]) > self._limit:
            return self._too_long()
        return None

    def _too_long(self) -> ApiError:
        return ApiError(413, f"the body is longer than {self._limit:,} bytes")


class _TooLong(BaseException):
    """Passes through the application, which turns exceptions into errors of its own."""
