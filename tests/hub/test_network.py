"""How the Hub is reached: proxies, mirrors and the switches for no network, as the huggingface_hub
library has them."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub.constants import ENV_VARS_TRUE_VALUES

from lab.errors import LabError
from lab.hub import client, settings
from lab.models import catalog, hub
from tests.hub.conftest import NAME
from tests.hub.stand_in import StandIn

WEIGHTS = "model.safetensors"
ELSEWHERE = "http://a-name-of-the-proxy-alone.test"


@pytest.fixture(autouse=True)
def no_proxy_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in settings.PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


def fetch() -> Path:
    """The whole model, from the commit to the weights."""
    return hub.local_folder(hub.pin(catalog.resolve(NAME)), with_weights=True)


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "ALL_PROXY"])
def test_a_whole_download_goes_through_the_proxy(
    stand_in: StandIn, micro_model: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    """The stand-in is the proxy; the name of the Hub is one that nobody can look up."""
    stand_in.commit(NAME, micro_model)
    monkeypatch.setenv("HF_ENDPOINT", ELSEWHERE)
    monkeypatch.setenv(variable, stand_in.address)
    assert (fetch() / WEIGHTS).read_bytes() == (micro_model / WEIGHTS).read_bytes()
    asked = [line.path for line in stand_in.requests("GET")]
    assert asked and all(path.startswith(ELSEWHERE) for path in asked), "as a proxy is asked"


def test_no_proxy_names_hosts_that_are_asked_directly(
    stand_in: StandIn, micro_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in.commit(NAME, micro_model)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with pytest.raises(LabError):
        fetch()
    client.forget_outage()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert fetch().is_dir()


@pytest.fixture
def tunnel() -> Iterator[tuple[str, list[str]]]:
    """(address, first lines of what was asked) of a proxy that opens no tunnel."""
    lines: list[str] = []
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.1)
    over = threading.Event()

    def answer() -> None:
        while not over.is_set():
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                continue
            with connection:
                lines.append(connection.recv(65_536).decode().splitlines()[0])
                connection.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}", lines
    over.set()
    thread.join(10)
    listener.close()


@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "https_proxy"])
def test_an_https_hub_is_asked_for_through_a_tunnel(
    stand_in: StandIn,
    tunnel: tuple[str, list[str]],
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
) -> None:
    address, lines = tunnel
    monkeypatch.setenv("HF_ENDPOINT", ELSEWHERE.replace("http:", "https:"))
    monkeypatch.setenv(variable, address)
    with pytest.raises(LabError, match="the proxy refuses: 403 Forbidden") as raised:
        fetch()
    assert lines == ["CONNECT a-name-of-the-proxy-alone.test:443 HTTP/1.1"]
    assert "HTTPS_PROXY" in raised.value.hint
    assert stand_in.log == []


def test_a_mirror_below_a_path_is_used(
    stand_in: StandIn, micro_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = stand_in.commit(NAME, micro_model)
    stand_in.prefix = "/mirrors/hf"
    monkeypatch.setenv("HF_ENDPOINT", f"{stand_in.address}/mirrors/hf/")
    assert fetch().name == commit
    asked = [line.path for line in stand_in.requests("GET")]
    assert len(asked) > 5 and all(path.startswith("/mirrors/hf/") for path in asked)
    monkeypatch.setenv("HF_ENDPOINT", stand_in.address)
    with pytest.raises(LabError):
        hub.pin(catalog.resolve("org/other"))


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_offline_in_every_spelling(
    stand_in: StandIn, micro_model: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    stand_in.commit(NAME, micro_model)
    for name in ("LAB_HUB_OFFLINE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    spellings = {value.lower() for value in ENV_VARS_TRUE_VALUES}
    assert spellings == {"1", "on", "yes", "true"} == {value.lower() for value in settings.TRUE}
    for spelling in sorted(spellings | {value.upper() for value in spellings} | {"True", "yEs"}):
        monkeypatch.setenv(variable, spelling)
        with pytest.raises(LabError, match="HF_HUB_OFFLINE is set"):
            fetch()
        assert catalog.resolve(NAME).local_only
    assert stand_in.log == [], "nothing was asked"
    for spelling in ("0", "off", "no", "false", ""):
        monkeypatch.setenv(variable, spelling)
        assert not catalog.resolve(NAME).local_only
        assert hub.pin(catalog.resolve(NAME)).revision
        assert stand_in.requests("GET"), spelling
        stand_in.clear()
