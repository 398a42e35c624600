"""How the Hub is reached, as the environment says it: address, offline, cache, time limits.

The variables are those of the huggingface_hub library, read at each call.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

TRUE = ("1", "ON", "YES", "TRUE")  # in any case, as the library reads its switches
# what a person said of the network; HF_HUB_OFFLINE itself is set for the libraries of a child
OFFLINE = "LAB_HUB_OFFLINE"
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR")  # of authorities that Python trusts
PASSED_ON = (
    *("HF_ENDPOINT", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"),
    *("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT"),
    *CERTIFICATES,
    *PROXIES,
    *(name.lower() for name in PROXIES),
)
CONNECT_S = 5.0


def endpoint() -> str:
    """The address of the Hub, or of the mirror that HF_ENDPOINT names, without a slash behind."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def is_on(name: str) -> bool:
    return os.environ.get(name, "").upper() in TRUE


def is_offline() -> bool:
    """Whether a person wants no network: only what is on the disk counts."""
    if os.environ.get(OFFLINE):
        return is_on(OFFLINE)
    return is_on("HF_HUB_OFFLINE" if os.environ.get("HF_HUB_OFFLINE") else "TRANSFORMERS_OFFLINE")


def for_children() -> dict[str, str]:
    """Variables of a process that loads libraries: they stay offline, the lab is as it was."""
    return {OFFLINE: "1" if is_offline() else "0", "HF_HUB_OFFLINE": "1"}


def passed_on() -> dict[str, str]:
    """What a process that was started earlier must know of this one's network; "" is unset."""
    return {name: os.environ.get(name, "") for name in PASSED_ON} | {
        OFFLINE: "1" if is_offline() else "0"
    }


def adopt(network: dict[str, Any]) -> None:
    """Have the network of the process that sent `network` (`passed_on`)."""
    for name in (*PASSED_ON, OFFLINE):
        value = network.get(name)
        if isinstance(value, str) and value:
            os.environ[name] = value
        else:
            os.environ.pop(name, None)  # a library would take "" for a value


def cache_folder() -> Path:
    """Where models of the Hub are kept, for all programs of this account."""
    folder = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    return _expanded(folder) if folder else hf_home() / "hub"


def hf_home() -> Path:
    home = os.environ.get("HF_HOME")
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return _expanded(home) if home else _expanded(cache) / "huggingface"


def _expanded(path: str) -> Path:
    return Path(os.path.expandvars(os.path.expanduser(path))).absolute()


def metadata_s() -> float:
    """Seconds without a byte after which a question to the Hub has failed."""
    return _seconds("HF_HUB_ETAG_TIMEOUT", 10.0)


def download_s() -> float:
    """Seconds without a byte after which a download is begun again where it stands."""
    return _seconds("HF_HUB_DOWNLOAD_TIMEOUT", 10.0)


def _seconds(name: str, default: float) -> float:
    try:
        return max(0.1, float(os.environ[name]))
    except (KeyError, ValueError):
        return default
