"""What every request passes first: where it was sent, from which page, and by whom.

The board can start programs, so it is for the person who started it alone, as notebook servers are:
a token in the address that `luthier board` prints, and a cookie from then on. Requests are refused
that name another host than this machine (a web page whose name was pointed here: DNS rebinding), or
that a page of another origin makes, over WebSockets too.
"""

import hashlib
import hmac
import ipaddress
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# The component library writes scripts and styles into its own page; nothing may come from, or go to,
# any place but the board, and no attribute of an element is a script.
_POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",
        "script-src-attr 'none'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data:",
        "font-src 'self' data:",
        "connect-src 'self'",
        "object-src 'none'",
        "base-uri 'none'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    )
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_ASK = "open the address that `luthier board` printed: it holds the token that this page needs"


class Guard:
    """ASGI middleware around the whole board."""

    def __init__(self, app: ASGIApp, token: str, port: int) -> None:
        self._app = app
        self._token = token.encode()
        # Cookies do not know ports: another board on this machine has another name for its own.
        self._cookie = f"luthier-board-{port}"
        self._session = hashlib.sha256(b"board session " + self._token).hexdigest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        refused = self._refused(scope, headers)
        if scope["type"] == "websocket":
            if refused is not None:
                await send({"type": "websocket.close", "code": 1008})
                return
            await self._app(scope, receive, send)
            return

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                found = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    found.setdefault(name, value)
            await send(message)

        if refused is not None:
            await refused(scope, receive, marked)
            return
        # It would become a part of the page's addresses.
        scope["headers"] = [h for h in scope["headers"] if not h[0].startswith(b"x-forwarded-")]
        await self._app(scope, receive, marked)

    def _refused(self, scope: Scope, headers: Headers) -> Response | None:
        """The answer to a request that goes no further: an error, or the way to the cookie."""
        host = headers.get("host", "")
        if not is_this_machine(host):
            return _error(403, "the board answers only requests to 127.0.0.1 or localhost")
        origin = headers.get("origin")
        if origin is not None and origin != f"http://{host}":
            return _error(403, "the board answers only its own pages")
        if headers.get("sec-fetch-site") in ("cross-site", "same-site") and not _opens_page(
            headers
        ):
            return _error(403, "the board answers only its own pages")
        given = dict(parse_qsl(scope["query_string"].decode("latin-1")))
        if scope["type"] == "http" and scope["method"] == "GET" and "token" in given:
            if hmac.compare_digest(given.pop("token").encode(), self._token):
                return self._welcome(scope["path"], given)
            return _error(403, _ASK)
        if not hmac.compare_digest(self._cookie_of(headers).encode(), self._session.encode()):
            return _error(403, _ASK)
        return None

    def _welcome(self, path: str, rest: dict[str, str]) -> Response:
        """To the same page without the token, which would stay in the history."""
        query = f"?{urlencode(rest)}" if rest else ""
        response = RedirectResponse(quote("/" + path.lstrip("/\\")) + query, status_code=303)
        response.set_cookie(self._cookie, self._session, httponly=True, samesite="strict")
        return response

    def _cookie_of(self, headers: Headers) -> str:
        try:
            cookies = SimpleCookie(headers.get("cookie", ""))
        except CookieError:
            return ""
        found = cookies.get(self._cookie)
        return found.value if found is not None else ""


def is_this_machine(host: str) -> bool:
    """Whether a Host header names this machine, as only it calls itself."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _opens_page(headers: Headers) -> bool:
    """Whether a person follows a link to here, which shows a page to nobody else."""
    return (
        headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
    )


def _error(status: int, text: str) -> Response:
    return PlainTextResponse(f"{text}\n", status_code=status)
