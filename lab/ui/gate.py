"""The gate in front of the web server: every request shows the token, or it goes no further.

It runs before Streamlit, as middleware of the ASGI application, so that pages, uploads, media,
component files and the web socket are all behind it. Who may pass says `lab.access`.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote, unquote_to_bytes, urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketClose
from streamlit import config
from streamlit.web.server.starlette.starlette_websocket import is_host_allowed

from lab import access
from lab.ui import token_page

MAX_FORM_BYTES = 8192  # bytes
PORTS = {"http": 80, "https": 443}
HEADERS = {
    # a page on another port of this host is the same site to a browser: it may neither frame the
    # lab nor take its files in
    "Content-Security-Policy": "frame-ancestors 'self'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",
}


class Gate:
    """ASGI middleware. Without a token only the origin of a request is looked at."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.access = access.current() if access.is_required() else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        connection = HTTPConnection(scope)
        refusal = _foreign(connection)
        if not refusal and self.access is None:
            await self.app(scope, receive, _with_headers(send))
        elif scope["type"] == "websocket":
            if refusal or not self._is_known(connection):
                # before the handshake: the server answers it with 403
                await WebSocketClose(code=1008)(scope, receive, send)
            else:
                await self.app(scope, receive, send)
        else:
            request = Request(scope, receive)
            response = (
                token_page.elsewhere(request, refusal) if refusal else await self._ask(request)
            )
            await (response or self.app)(scope, receive, _with_headers(send))

    async def _ask(self, request: Request) -> Response | None:
        """What the gate itself answers; None if the request goes on to Streamlit."""
        assert self.access is not None
        if _is_form(request):
            tokens = _tokens(await _body(request))
            return (
                self._let_in(request) if self._is_token(tokens) else token_page.ask(request, True)
            )
        tokens = _tokens(request.scope["query_string"])
        if tokens and request.method in ("GET", "HEAD"):
            if self._is_token(tokens):
                return self._let_in(request)
            if self._is_known(request):  # an address of long ago: its token is of no use
                return _redirect(request)
            return token_page.ask(request, True)
        return None if self._is_known(request) else token_page.ask(request, False)

    def _is_known(self, connection: HTTPConnection) -> bool:
        """Whether a cookie, an Authorization header or (for web sockets) the query lets it in."""
        assert self.access is not None
        shown = [
            value.strip().encode("latin-1")
            for header in connection.headers.getlist("authorization")
            for scheme, _, value in [header.partition(" ")]
            if scheme.lower() in ("bearer", "token")
        ]
        if len(shown) == 1 and self.access.is_token(shown[0]):
            return True
        if self._is_token(_tokens(connection.scope["query_string"])):
            return True
        return any(self.access.is_cookie(value) for value in self._cookies(connection))

    def _is_token(self, tokens: list[bytes]) -> bool:
        """One token and the right one: of two it would not be clear which was meant."""
        assert self.access is not None
        return len(tokens) == 1 and self.access.is_token(tokens[0])

    def _cookies(self, connection: HTTPConnection) -> list[str]:
        assert self.access is not None
        pairs = [
            pair.strip().partition("=")
            for header in connection.headers.getlist("cookie")
            for pair in header.split(";")
        ]
        return [value for name, _, value in pairs if name == self.access.cookie_name]

    def _let_in(self, request: Request) -> Response:
        """To the same address without the token, with a cookie instead."""
        assert self.access is not None
        response = _redirect(request)
        cookie = f"{self.access.cookie_name}={self.access.cookie()}; Path=/"
        cookie += f"; Max-Age={access.COOKIE_S}; HttpOnly; SameSite=Strict"
        response.headers["Set-Cookie"] = cookie + (
            "; Secure" if request.url.scheme == "https" else ""
        )
        return response


def _foreign(connection: HTTPConnection) -> str:
    """Why a request is refused whatever it shows: "host" for a name that the server is not known
    by (a foreign name that leads here), "origin" for a page of another host or port; else ""."""
    hosts = connection.headers.getlist("host")
    if len(hosts) != 1 or not is_host_allowed(hosts[0]):
        return "host"
    origins = connection.headers.getlist("origin")
    is_own = len(origins) <= 1 and all(_is_same(origin, hosts[0]) for origin in origins)
    return "" if is_own else "origin"


def _is_same(origin: str, host: str) -> bool:
    """Whether a page's origin is the host and port that it sends its request to."""
    try:
        page = urlsplit(origin)
        server = urlsplit(f"{page.scheme}://{host}")
        usual = PORTS[page.scheme]
        ports = [usual if part.port is None else part.port for part in (page, server)]
    except (ValueError, KeyError):  # also "null", the origin of a page that has none
        return False
    return "@" not in page.netloc and page.hostname == server.hostname and ports[0] == ports[1]


def _is_form(request: Request) -> bool:
    """Whether this is the form of the token page; Streamlit's own routes take no forms."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    is_page = "/_stcore/" not in request.url.path
    return request.method == "POST" and kind == "application/x-www-form-urlencoded" and is_page


async def _body(request: Request) -> bytes:
    """The body of a form; b"" for one that is far too long for a token."""
    body = b""
    with contextlib.suppress(ClientDisconnect):
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_FORM_BYTES:
                return b""
    return body


def _tokens(pairs: bytes) -> list[bytes]:
    """The values of every `token` in a query or a form."""
    values = [pair.partition(b"=") for pair in pairs.replace(b"+", b" ").split(b"&")]
    return [unquote_to_bytes(value).strip() for name, _, value in values if _is_token_name(name)]


def _is_token_name(name: bytes) -> bool:
    return unquote_to_bytes(name) == b"token"


def _redirect(request: Request) -> Response:
    """To the same address, every other part of its query as it was. Never to another host: one
    slash begins the path, however many were asked for."""
    raw_path = request.scope.get("raw_path") or request.scope["path"].encode()
    path = "/" + quote(raw_path.lstrip(b"/\\"), safe="%/~!$&'()*+,;=:@")
    parameters = [
        pair
        for pair in request.scope["query_string"].split(b"&")
        if pair and not _is_token_name(pair.partition(b"=")[0])
    ]
    query = quote(b"&".join(parameters), safe="%/?~!$&'()*+,;=:@")
    return Response(
        status_code=303,
        headers={"Location": path + (f"?{query}" if query else ""), "Cache-Control": "no-store"},
    )


def _with_headers(send: Send) -> Send:
    async def sender(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
        await send(message)

    return sender


@contextlib.asynccontextmanager
async def lifespan(app: Any) -> AsyncIterator[None]:
    """Print the address when the server starts."""
    print(announcement(), flush=True)
    yield


def announcement() -> str:
    """The address to open, and what the person who starts the server needs to know."""
    address = _address()
    if access.is_required():
        current = access.current()
        if (
            current.is_fixed and not sys.stdout.isatty()
        ):  # a token of yours is not written into a log
            note = "It asks for the token in LAB_TOKEN."
        else:
            address += f"?token={quote(current.token, safe='')}"
            note = "Who has this address can do here what you can."
        lines = [f"Finetune Lab: {address}", note]
    else:
        lines = [f"Finetune Lab: {address}"]
    lines += [f"WARNING: {warning}" for warning in access.warnings()]
    return "\n  ".join(["", *lines]) + "\n"


def _address() -> str:
    """By number: where `localhost` is looked up, another account could have the lab's port."""
    if getattr(config, "_server_mode", None) == "asgi-server":
        return "the address of your ASGI server, with /"  # which port it has is not known here
    host = config.get_option("server.address")
    host = "127.0.0.1" if host in (None, "0.0.0.0", "::") else host
    scheme = "https" if config.get_option("server.sslCertFile") else "http"
    base = (config.get_option("server.baseUrlPath") or "").strip("/")
    host = f"[{host}]" if ":" in host else host
    return f"{scheme}://{host}:{config.get_option('server.port')}/{base + '/' if base else ''}"
