"""What every request passes first: the key, where it was sent, and a bound on its body."""

import hmac
import ipaddress
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from luthier.serve.errors import ApiError

_OPEN = ("/healthz",)
_DRAIN = 16  # times the bound: so much of a body that is refused is still read


def is_loopback(host: str) -> bool:
    """Whether ``host`` is this machine, as only it calls itself."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Guard:
    """ASGI middleware: 401 without the key, 413 for a body longer than ``body_limit`` bytes.

    A body that does not say its length is counted as it comes. Without a key, 403 for a request to
    another name than this machine's own: a web page whose name was pointed here (DNS rebinding).
    """

    def __init__(self, app: ASGIApp, api_key: str | None, body_limit: int) -> None:
        self._app = app
        self._key = api_key.encode() if api_key is not None else None
        self._limit = body_limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        received = 0
        answered = False

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._limit and not answered:
                raise _TooLong
            return message

        async def watched(message: Message) -> None:
            nonlocal answered
            answered = True
            await send(message)

        refused = self._refused(scope["path"], Headers(scope=scope))
        try:
            if refused is None:
                await self._app(scope, counted, watched)
                return
        except _TooLong:
            refused = self._too_long()
        # A client that still sends would not read the answer: the rest is taken, and forgotten.
        more = True
        while more and received <= _DRAIN * self._limit:
            message = await receive()
            received += len(message.get("body", b""))
            more = message.get("more_body", False)
        await refused.response()(scope, receive, send)

    def _refused(self, path: str, headers: Headers) -> ApiError | None:
        if self._key is None:
            if not is_loopback(_host_name(headers)):
                return ApiError(
                    403, "without an API key this server answers only requests from its own machine"
                )
        elif path not in _OPEN:
            scheme, _, given = headers.get("authorization", "").partition(" ")
            # Compared in the same time wherever the first difference is.
            same = hmac.compare_digest(given.strip().encode("latin-1"), self._key)
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
        return ApiError(413, f"the request body is longer than {self._limit:,} bytes")


def _host_name(headers: Headers) -> str:
    try:
        return urlsplit(f"//{headers.get('host', '')}").hostname or ""
    except ValueError:
        return ""


class _TooLong(BaseException):
    """Passes through the application, which turns exceptions into errors of its own."""
