"""The page that asks for the token, and the refusal of requests from elsewhere."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response

from lab.paths import ASSETS

ASK = (
    "Open the address that the server printed when it started, or paste the token of that address "
    "here."
)
WRONG = "This is not the token of this lab."
TEXT = "This lab asks for its token: send it as 'Authorization: Bearer TOKEN'."
FOREIGN = {
    "host": (
        "This lab is not known by the name in the address. Open it as 127.0.0.1 or localhost, or "
        "add the name to server.allowedHosts."
    ),
    "origin": "This request comes from another page than the lab's own, and is refused.",
}
# A browser that comes from another site leaves the cookie out. The page then opens its own address
# once more, this time from here, and the cookie comes along.
AGAIN = '<meta http-equiv="refresh" content="0">'
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'; "
        "frame-ancestors 'none'"
    ),
}


def ask(request: Request, is_wrong: bool) -> Response:
    """401: the form for a browser, a line for a program. `is_wrong`: a token was shown."""
    headers = HEADERS | {"WWW-Authenticate": "Bearer"}
    if "text/html" not in request.headers.get("accept", ""):
        text = f"{WRONG} {TEXT}" if is_wrong else TEXT
        return PlainTextResponse(f"{text}\n", 401, headers)
    comes_from_elsewhere = request.headers.get("sec-fetch-site") == "cross-site"
    page = (ASSETS / "token.html").read_text(encoding="utf-8")
    parts = {
        "AGAIN": AGAIN if comes_from_elsewhere and request.method == "GET" else "",
        "LOGO": (ASSETS / "icon.svg").read_text(encoding="utf-8"),
        "ASK": ASK,
        "PROBLEM": f'<p class="problem" role="alert">{WRONG}</p>' if is_wrong else "",
    }
    for name, part in parts.items():
        page = page.replace(f"<!--{name}-->", part)
    return HTMLResponse(page, 401, headers)


def elsewhere(request: Request, why: str) -> Response:
    """403 for a foreign host or origin."""
    return PlainTextResponse(f"{FOREIGN[why]}\n", 403, HEADERS)
