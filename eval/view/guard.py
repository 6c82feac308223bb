"""Keeps other sites and other users away from the page. It runs before any other code sees a request.

* The Host header must name this machine, or a name that resolves to it (DNS rebinding) could read the page.
* The first part of the path is a random token. Only the printed address has it.
* Requests that change or compute something are POST requests with JSON, from this page's own origin.
* No header allows other origins to read answers. Answers cannot be shown in a frame, and run no script of text.
* The body of a request is bounded.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from monet.eval.view import limits

# Names of this machine; an SSH tunnel may use any port.
HOSTS = frozenset({"127.0.0.1", "localhost", "[::1]"})
_HOST = re.compile(r"(\[::1\]|[A-Za-z0-9.-]+)(:\d{1,5})?")

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-store",
}
_OUTSIDE = (
    "This address is not the one that `monet view` printed.\n\nThe printed address has a random word in its path. It "
    "changes with every start. Open the address from the terminal.\n"
)


class Guard:
    """An ASGI application around the page's own.

    Args:
        app: the page's application.
        token: the random part of the address.
    """

    def __init__(self, app: Any, token: str) -> None:
        self._app, self._token = app, token

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request, or pass it on."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        if refusal := self._refusal(scope, headers):
            await _answer(send, *refusal)
            return
        await self._app(scope, _bounded(receive), _with_headers(send))

    def _refusal(self, scope: Any, headers: Mapping[str, str]) -> tuple[int, str] | None:
        """Status and text for a request that is refused."""
        hosts = [value for name, value in scope["headers"] if name.lower() == b"host"]
        if len(hosts) != 1 or not is_local(headers["host"]):
            return 421, "This server answers only to 127.0.0.1 and localhost.\n"
        first = scope["path"].removeprefix("/").partition("/")[0]
        if not secrets.compare_digest(first.encode(), self._token.encode()):
            return 403, _OUTSIDE
        if scope["method"] not in ("GET", "HEAD", "POST"):
            return 405, "Only GET, HEAD and POST are known.\n"
        foreign = headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none")
        if foreign and not _opens_page(scope, headers):
            return 403, "Another site sent this request.\n"
        if scope["method"] == "POST":
            origin = urlsplit(headers.get("origin", ""))
            if origin.scheme not in ("http", "https") or origin.netloc != headers["host"]:
                return 403, "The request must come from this page: its Origin header names another site, or none.\n"
            if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
                return 415, "The body must be application/json.\n"
            length = headers.get("content-length", "0")
            if not length.isdigit() or int(length) > limits.BODY:
                return 413, f"The body may have at most {limits.BODY} bytes.\n"
        return None


def _opens_page(scope: Any, headers: Mapping[str, str]) -> bool:
    """Whether a request shows the page in its own window, as a link does. The site with the link reads nothing."""
    shown = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
    return shown and scope["method"] == "GET" and scope["path"].count("/") == 2 and scope["path"].endswith("/")


def is_local(host: str) -> bool:
    """Whether a Host header names this machine."""
    match = _HOST.fullmatch(host)
    return match is not None and match[1].lower() in HOSTS


class TooLarge(Exception):
    """The body of a request is larger than its header said, or has no length and is too large."""


def _bounded(receive: Any) -> Any:
    size = 0

    async def bounded() -> Any:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        if size > limits.BODY:
            raise TooLarge
        return message

    return bounded


def _with_headers(send: Any) -> Any:
    async def sends(message: Any) -> None:
        if message["type"] == "http.response.start":
            own = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
            message = {**message, "headers": [*message.get("headers", []), *own]}
        await send(message)

    return sends


async def _answer(send: Any, status: int, text: str) -> None:
    body = text.encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    sends = _with_headers(send)
    await sends({"type": "http.response.start", "status": status, "headers": headers})
    await sends({"type": "http.response.body", "body": body})
