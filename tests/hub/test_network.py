"""How the Hub is reached: proxies, mirrors and the switches for no network, as the huggingface_hub
library has them."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub.constants import ENV_VARS_TRUE_VALUES

from lab.errors import LabError
from lab.hub import client, credentials, repository, settings
from lab.models import catalog, hub
from tests.hub.conftest import NAME
from tests.hub.stand_in import StandIn

WEIGHTS = "model.safetensors"
ELSEWHERE = "http://a-name-of-the-proxy-alone.test"
SECURE = "https://a-name-of-the-proxy-alone.test"


@pytest.fixture(autouse=True)
def no_proxy_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*settings.PROXIES, *settings.CERTIFICATES):
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
    client._down.clear()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert fetch().is_dir()


class Proxy:
    """Opens each tunnel that it is asked for to `target`, a port here; without one it refuses."""

    def __init__(self) -> None:
        self.target: int | None = None
        self.lines: list[str] = []  # the first of each question
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            self.lines.append(connection.recv(65_536).decode().splitlines()[0])
            if self.target is None:
                return connection.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
            with socket.create_connection(("127.0.0.1", self.target)) as hub:
                connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                back = threading.Thread(target=relay, args=(hub, connection), daemon=True)
                back.start()
                relay(connection, hub)
                back.join(10)
        return None

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


def relay(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65_536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    proxy = Proxy()
    yield proxy
    proxy.close()


@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "https_proxy"])
def test_an_https_hub_is_asked_for_through_a_tunnel(
    stand_in: StandIn,
    proxy: Proxy,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", SECURE)
    monkeypatch.setenv(variable, proxy.address)
    with pytest.raises(LabError, match="the proxy refuses: 403 Forbidden") as raised:
        fetch()
    assert proxy.lines == ["CONNECT a-name-of-the-proxy-alone.test:443 HTTP/1.1"]
    assert "HTTPS_PROXY" in raised.value.hint
    assert stand_in.log == []


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(certificate, key) that a Hub of tests has, signed by nobody else."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate")
    folder = tmp_path_factory.mktemp("tls")
    files = folder / "certificate.pem", folder / "key.pem"
    names = f"subjectAltName=DNS:localhost,DNS:{SECURE.removeprefix('https://')}"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-days", "2", "-subj", "/CN=test", "-addext", names,
         "-out", str(files[0]), "-keyout", str(files[1])],
        check=True, capture_output=True,
    )  # fmt: skip
    return files


@pytest.fixture
def secure(stand_in: StandIn, certificate: tuple[Path, Path]) -> StandIn:
    """The stand-in, speaking TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    stand_in.server.socket = context.wrap_socket(stand_in.server.socket, server_side=True)
    return stand_in


@pytest.mark.parametrize("way", ["proxy", "mirror"])
def test_a_whole_download_comes_over_tls(
    secure: StandIn, proxy: Proxy, certificate: tuple[Path, Path], micro_model: Path,
    monkeypatch: pytest.MonkeyPatch, way: str,
) -> None:  # fmt: skip
    """Through a tunnel to a name that nobody can look up, or to a mirror below a path."""
    secure.commit(NAME, micro_model)
    proxy.target = secure.server.server_port
    if way == "proxy":
        monkeypatch.setenv("HF_ENDPOINT", SECURE)
        monkeypatch.setenv("HTTPS_PROXY", proxy.address)
    else:
        secure.prefix = "/mirrors/hf"
        monkeypatch.setenv("HF_ENDPOINT", f"https://localhost:{proxy.target}/mirrors/hf")
    with pytest.raises(LabError, match="CERTIFICATE_VERIFY_FAILED") as raised:
        fetch()
    assert "SSL_CERT_FILE" in raised.value.hint and secure.log == []
    client._down.clear()
    monkeypatch.setenv("SSL_CERT_FILE", "/no/such/file")
    with pytest.raises(LabError, match="SSL_CERT_FILE or SSL_CERT_DIR cannot be read"):
        fetch()
    client._down.clear()
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    assert (fetch() / WEIGHTS).read_bytes() == (micro_model / WEIGHTS).read_bytes()
    host = SECURE.removeprefix("https://")
    assert set(proxy.lines) == ({f"CONNECT {host}:443 HTTP/1.1"} if way == "proxy" else set())


@pytest.mark.parametrize("address", ["socks9://127.0.0.1:1", "http://[::1"])
def test_a_proxy_that_is_no_address_is_told(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setenv("ALL_PROXY", address)
    with pytest.raises(LabError, match="the proxy's address") as raised:
        fetch()
    assert "HTTPS_PROXY" in raised.value.hint


def test_a_mirror_below_a_path_is_used(
    stand_in: StandIn, micro_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = stand_in.commit(NAME, micro_model)
    stand_in.prefix = "/mirrors/hf"
    monkeypatch.setenv("HF_ENDPOINT", f"{stand_in.address}/mirrors/hf/")
    assert fetch().name == commit
    asked = [line.path for line in stand_in.requests("GET")]
    assert len(asked) > 5 and all(path.startswith("/mirrors/hf/") for path in asked)
    assert not any("//" in path for path in asked), "The slash behind the address is taken off."
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


def test_what_was_refused_offline_is_asked_for_as_soon_as_there_is_a_network(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = stand_in.commit(NAME, {"config.json": b"{}"})
    monkeypatch.setenv("LAB_HUB_OFFLINE", "1")
    with pytest.raises(LabError, match="HF_HUB_OFFLINE is set"):
        repository.current_commit("models", NAME)
    monkeypatch.setenv("LAB_HUB_OFFLINE", "0")
    assert repository.current_commit("models", NAME) == commit


def test_a_page_is_what_came_only_where_no_page_was_meant(stand_in: StandIn) -> None:
    stand_in.commit(NAME, {"index.html": b"x"})
    repo = repository.resolve("models", NAME)
    stand_in.faults[NAME] = {"page": True}
    path = repo.url("index.html").removeprefix(stand_in.address)
    assert client.get(path, repo.subject)[0] == b"<html>Log in</html>"


def test_a_hub_that_asks_for_a_long_pause_is_not_waited_for(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in.commit(NAME, {"config.json": b"{}"})
    stand_in.faults[NAME] = {"status": 429}
    monkeypatch.setattr(client, "MAX_WAIT_S", 0.05)
    with pytest.raises(LabError, match=r"status 429") as raised:
        repository.current_commit("models", NAME)
    assert "Try again in 0.1 s." in raised.value.hint
    assert len(stand_in.log) == 1, "It asked for 0.1 s, and the most is 0.05 s."


def test_a_forked_process_shares_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    parent = client.client("it")
    assert client.client("it") is parent
    monkeypatch.setattr("os.getpid", lambda: -1)
    assert client.client("it") is not parent


def test_another_process_gets_the_network_and_the_token_of_this_one(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://a-proxy.test:3128")
    monkeypatch.setenv("HF_TOKEN_PATH", "/no/such/file")
    header = credentials.access_header()
    credentials.give("hf_test", "the token of a test")
    with_token = credentials.access_header()
    monkeypatch.delenv("HTTPS_PROXY")
    monkeypatch.setenv("ALL_PROXY", "http://an-old-proxy.test")
    credentials.adopt_header(header["X-Hub-Access"])
    assert os.environ["HTTPS_PROXY"] == "http://a-proxy.test:3128"
    assert "ALL_PROXY" not in os.environ, "What the other does not have set is unset here."
    assert credentials.current() is None
    credentials.adopt_header(with_token["X-Hub-Access"])
    token = credentials.current()
    assert token is not None
    assert (token.value, token.origin) == ("hf_test", "the token of a test")


@pytest.mark.parametrize(("text", "seconds"), [("2.5", 2.5), ("0", 0.1), ("-3", 0.1), ("x", 10.0)])
def test_a_time_limit_is_never_nothing(
    monkeypatch: pytest.MonkeyPatch, text: str, seconds: float
) -> None:
    monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", text)
    assert settings.metadata_s() == seconds


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({"HF_HUB_CACHE": "/a", "HUGGINGFACE_HUB_CACHE": "/b", "HF_HOME": "/c"}, "/a"),
        ({"HUGGINGFACE_HUB_CACHE": "/b", "HF_HOME": "/c"}, "/b"),
        ({"HF_HOME": "/c", "XDG_CACHE_HOME": "/d"}, "/c/hub"),
        ({"XDG_CACHE_HOME": "/d"}, "/d/huggingface/hub"),
        ({"HF_HOME": "$WORK/e"}, "/w/e/hub"),
    ],
)
def test_the_cache_lies_where_the_library_has_it(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], folder: str
) -> None:
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in (variables | {"WORK": "/w"}).items():
        monkeypatch.setenv(name, value)
    assert str(settings.cache_folder()) == folder


@pytest.mark.parametrize("offline", ["0", "1"])
def test_a_child_keeps_its_libraries_offline_and_knows_what_a_person_wants(
    monkeypatch: pytest.MonkeyPatch, offline: str
) -> None:
    monkeypatch.setenv("LAB_HUB_OFFLINE", offline)
    assert settings.for_children() == {"LAB_HUB_OFFLINE": offline, "HF_HUB_OFFLINE": "1"}
