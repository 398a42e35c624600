"""What the Hub refuses, in words: one message for each kind of failure, with its own way out."""

from __future__ import annotations

import math
from typing import Any

from lab.errors import LabError
from lab.hub import settings
from lab.hub.credentials import HubToken

TOKEN_PAGE = "the settings of your account on the Hub (Access Tokens)"


class HubError(LabError):
    """`kind` names the failure; `retry_s` is when the Hub may be asked again, if it may."""

    def __init__(
        self, message: str, hint: str = "", *, kind: str = "other", retry_s: float | None = None
    ) -> None:
        super().__init__(message, hint)
        self.kind = kind
        self.retry_s = retry_s


class HubUnreachable(HubError):
    """The Hub is not there, or not able to answer: what is in the cache may do instead. `why` is
    the middle of a sentence."""

    why = ""


def unreachable(subject: str, why: str, *, kind: str = "network") -> HubUnreachable:
    """`subject` cannot be had because no answer came."""
    hints = {
        "proxy": "Check HTTPS_PROXY and NO_PROXY, and the proxy's own login.",
        "certificate": "Where a proxy of your network signs with a certificate of its own, name "
        "the file with its authority in SSL_CERT_FILE.",
        "timeout": "Try again; the network or the Hub is slow. With HF_HUB_ETAG_TIMEOUT (seconds) "
        "the lab waits longer.",
        "offline": "Unset HF_HUB_OFFLINE, or choose what is on this machine.",
    }
    hint = hints.get(
        kind,
        "Connect to the network, check HF_ENDPOINT and HTTPS_PROXY, or choose what is on this "
        "machine.",
    )
    # a name that is not known now is not known in a moment either, a lost connection may be back
    retry_s = 0.3 if kind == "network" else None
    error = HubUnreachable(
        f"{subject}: the Hub cannot be reached ({why}).", hint, kind=kind, retry_s=retry_s
    )
    error.why = why
    return error


def no_hub(subject: str, host: str) -> HubError:
    """A web page or nonsense came in place of what was asked for."""
    return HubError(
        f"{subject} cannot be read: {host} does not answer as a Hub does.",
        "Check HF_ENDPOINT, and whether a page of your network asks for a login first.",
        kind="server",
    )


def refusal(
    status: int, headers: dict[str, str], body: bytes, subject: str, token: HubToken | None
) -> HubError:
    """What a status of 400 or more means for `subject`."""
    code = headers.get("x-error-code", "")
    message = headers.get("x-error-message", "")
    page = f"{settings.endpoint()}/{_repository(subject)}"
    if status == 429:
        retry_s = _seconds(headers.get("retry-after"))
        when = f" in {retry_s:g} s" if retry_s else " in some minutes"
        more = "" if token else " A token (HF_TOKEN) allows more requests."
        return HubError(
            f"{subject}: the Hub limits how often it is asked (status 429).",
            f"Try again{when}.{more}",
            kind="rate limit",
            retry_s=retry_s or 1.0,
        )
    if status == 407:
        return HubUnreachable(
            f"{subject}: the proxy asks for a login (status 407).",
            "Write user and password into HTTPS_PROXY, as http://user:password@host:port.",
            kind="proxy",
        )
    if status >= 500:
        return HubUnreachable(
            f"{subject}: the Hub has a fault of its own (status {status}).",
            "Try again in some minutes; status.huggingface.co says when it is down.",
            kind="server",
            retry_s=_seconds(headers.get("retry-after")) or 0.5,
        )
    if code == "GatedRepo" or "gated" in message.lower():
        return _gated(subject, page, status, token)
    if status == 401 and token is not None and code != "RepoNotFound":
        return _wrong_token(subject, token)
    if code == "RevisionNotFound":
        return HubError(
            f"{subject} has no such branch, tag or commit.",
            "Check what follows the #; without it the branch main is used.",
            kind="not found",
        )
    if code == "EntryNotFound":
        return HubError(
            f"{subject} lacks a file that it needs.",
            "Check the repository's files on the Hub.",
            kind="not found",
        )
    if "disabled" in message.lower():
        return HubError(f"{subject} was disabled by the Hub.", "Choose another.", kind="disabled")
    if status in (401, 403, 404):
        return _not_found(subject, status, token)
    words = message or body.decode(errors="replace")[:200] or f"status {status}"
    return HubError(f"{subject}: the Hub refuses ({words}).", "Check the ID.", kind="other")


def _gated(subject: str, page: str, status: int, token: HubToken | None) -> HubError:
    if token is None:
        return HubError(
            f"{subject} is gated: its files need a token, and none was given.",
            f"Accept its terms at {page}, then give a token: on the page, or in HF_TOKEN.",
            kind="gated",
        )
    if status == 401:
        return _wrong_token(subject, token)
    return HubError(
        f"{subject} is gated, and {token.origin} has no access to it.",
        f"Accept its terms at {page} with the account of that token (some ask for approval first); "
        "a fine-grained token also needs the right to read gated repositories.",
        kind="gated",
    )


def _wrong_token(subject: str, token: HubToken) -> HubError:
    return HubError(
        f"{subject}: the Hub does not know {token.origin}: it is wrong or expired.",
        f"Make a new one in {TOKEN_PAGE}; public repositories need none.",
        kind="token",
    )


def _not_found(subject: str, status: int, token: HubToken | None) -> HubError:
    if token is None:
        return HubError(
            f"{subject} is not on the Hub, or it is private and no token was given.",
            "Check the ID letter by letter; for a private one give a token that may read it: on "
            "the page, or in HF_TOKEN.",
            kind="not found",
        )
    return HubError(
        f"{subject} is not on the Hub, or it is private and {token.origin} may not read it.",
        "Check the ID letter by letter; for a private one use a token of its owner.",
        kind="not found",
    )


def _repository(subject: str) -> str:
    """The path of the repository's page, from a subject such as "The model 'org/name'"."""
    name = subject.partition("'")[2].partition("'")[0].partition("#")[0]
    return f"datasets/{name.partition(':')[0].partition('@')[0]}" if "dataset" in subject else name


def _seconds(value: Any) -> float | None:
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        return None
    return max(0.0, seconds) if math.isfinite(seconds) else None
