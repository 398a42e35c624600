"""Requests to the Hub: proxies and mirrors of the environment, time limits, errors in words."""

from __future__ import annotations

import contextlib
import json
import os
import ssl
import threading
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from lab import __version__, stages
from lab.errors import first_line
from lab.hub import credentials, settings
from lab.hub.problems import HubError, HubUnreachable, no_hub, refusal, unreachable

MAX_ANSWER_BYTES = 64_000_000  # of an answer that is held in memory
MAX_QUESTION_S = 20.0  # for one question, however slowly the answer drips
RETRIES = 2  # of a question that the Hub asks to repeat
MAX_WAIT_S = 8.0  # for which a question is put off on the Hub's word
QUIET_S = 5.0  # after the Hub was not there, during which it is not asked again

_lock = threading.Lock()
_clients: dict[tuple[int, str], Any] = {}
_down: dict[str, tuple[float, str, str]] = {}  # address -> when, why, kind


def client(subject: str) -> Any:
    """The process's own client: a fork must not share connections with its parent, and a change
    of proxies or certificates counts. Raises HubError for settings of which none can be made."""
    import httpx2

    network = "|".join(
        f"{key}={value}"
        for key, value in sorted(os.environ.items())
        if "proxy" in key.lower() or key in settings.CERTIFICATES
    )
    key = (os.getpid(), network)
    with _lock:
        if key not in _clients:
            _clients.clear()
            try:
                _clients[key] = httpx2.Client(follow_redirects=True, trust_env=True)
            except OSError:
                raise unreachable(
                    subject, "SSL_CERT_FILE or SSL_CERT_DIR cannot be read", kind="certificate"
                ) from None
            except (ValueError, httpx2.InvalidURL, ImportError) as error:
                raise unreachable(
                    subject, f"the proxy's address: {first_line(error)}", kind="proxy"
                ) from None
        return _clients[key]


@contextlib.contextmanager
def stream(
    url: str,
    subject: str,
    *,
    read_s: float,
    headers: dict[str, str] | None = None,
    params: dict[str, Any] | None = None,
) -> Iterator[Any]:
    """An open GET of `url`, a whole address below the endpoint; `subject` is what messages call
    it. Raises HubError, also while its body is read."""
    import httpx2

    if settings.is_offline():
        raise unreachable(subject, "HF_HUB_OFFLINE is set", kind="offline")
    token = credentials.current()
    sent = {"User-Agent": f"finetune-lab/{__version__}", **(headers or {})}
    if token is not None:
        sent["Authorization"] = f"Bearer {token.value}"
    limits = httpx2.Timeout(read_s, connect=min(settings.CONNECT_S, read_s))
    http = client(subject)
    try:
        with http.stream("GET", url, headers=sent, params=params, timeout=limits) as response:
            if response.status_code >= 400:
                body = b""
                with contextlib.suppress(httpx2.HTTPError):
                    body = next(response.iter_bytes(), b"")[:2000]
                raise refusal(response.status_code, dict(response.headers), body, subject, token)
            is_page = response.headers.get("content-type", "").startswith("text/html")
            if is_page and not urlsplit(url).path.endswith((".html", ".htm")):
                raise no_hub(subject, host())
            yield response
    except httpx2.ProxyError as error:
        raise unreachable(
            subject, f"the proxy refuses: {first_line(error)}", kind="proxy"
        ) from None
    except httpx2.TimeoutException:
        raise unreachable(
            subject, f"{host()} did not answer within {read_s:g} s", kind="timeout"
        ) from None
    except (httpx2.HTTPError, httpx2.InvalidURL, ssl.SSLError) as error:
        kind = "certificate" if "CERTIFICATE_VERIFY_FAILED" in str(error) else "network"
        raise unreachable(subject, f"{host()}: {first_line(error)}", kind=kind) from None


def get(
    path: str,
    subject: str,
    *,
    headers: dict[str, str] | None = None,
    most: int = MAX_ANSWER_BYTES,
    params: dict[str, Any] | None = None,
) -> tuple[bytes, dict[str, str]]:
    """(up to `most` bytes of the answer to `path`, its headers). Repeats what the Hub asks to
    repeat, within MAX_QUESTION_S. Raises HubError.

    A Hub that was not there a moment ago is not waited for again.
    """
    address = settings.endpoint()
    if address in _down:
        since, why, kind = _down[address]
        if time.monotonic() - since < QUIET_S:
            raise unreachable(subject, why, kind=kind)
    ends = time.monotonic() + MAX_QUESTION_S
    with waiting():
        for repeat in range(RETRIES + 1):
            try:
                return _get_once(address + path, subject, headers, most, ends, params)
            except HubError as error:
                wait_s = error.retry_s
                is_last = repeat == RETRIES or wait_s is None or wait_s > MAX_WAIT_S
                if is_last or time.monotonic() + (wait_s or 0) > ends:
                    if isinstance(error, HubUnreachable) and error.why and error.kind != "offline":
                        _down[address] = (time.monotonic(), error.why, error.kind)
                    raise
                time.sleep(wait_s or 0)
    raise AssertionError("the last repeat returns or raises")


@contextlib.contextmanager
def waiting() -> Iterator[None]:
    """The part of a request's work in which the Hub is waited for; threads of it say nothing."""
    if stages.current() == "hub":
        yield
        return
    with stages.stage("hub"):
        yield


def _get_once(
    url: str,
    subject: str,
    headers: dict[str, str] | None,
    most: int,
    ends: float,
    params: dict[str, Any] | None,
) -> tuple[bytes, dict[str, str]]:
    body = bytearray()
    with stream(
        url, subject, read_s=settings.metadata_s(), headers=headers, params=params
    ) as response:
        for chunk in response.iter_bytes():
            body += chunk
            if len(body) >= most:
                break
            if time.monotonic() > ends:
                raise unreachable(
                    subject, f"{host()} took longer than {MAX_QUESTION_S:g} s", kind="timeout"
                )
        return bytes(body[:most]), dict(response.headers) | {":status": str(response.status_code)}


def get_json(
    path: str, subject: str, params: dict[str, Any] | None = None
) -> tuple[Any, dict[str, str]]:
    """(the parsed answer, its headers). Raises HubError."""
    body, headers = get(path, subject, params=params)
    try:
        return json.loads(body), headers
    except (ValueError, RecursionError):
        raise no_hub(subject, host()) from None


def host() -> str:
    return urlsplit(settings.endpoint()).netloc
