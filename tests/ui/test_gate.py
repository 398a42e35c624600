"""The token in front of the real server, over HTTP and the web socket, as a stranger would try."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote

import pytest
from starlette.requests import Request
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Origin

from lab import access
from lab.paths import ROOT
from lab.ui import gate
from lab.ui.gate import Gate
from tests.ui.conftest import Page, words

Headers = Sequence[tuple[str, str]]
PATHS = (
    "/",
    "/monitor",
    "/data?dataset=/etc/passwd.txt",
    "/index.html",
    "/_stcore/health",
    "/download/20261122-101530-lora-k3f9/result",
    "/_stcore/host-config",
    "/_stcore/metrics",
    "/_stcore/stream",
    "/_stcore/upload_file/session/file",
    "/_stcore/agent/openapi.json",
    "/media/0123456789abcdef.txt",
    "/component/some/index.html",
    "/_stcore/bidi-components/some/index.js",
    "/static/js/index.js",
    "/app/static/file.txt",
    "//",
    "/%2e%2e/app.py",
    "/nothing/of/the/kind",
)
METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH")


@dataclass
class Answer:
    status: int
    headers: http.client.HTTPMessage
    body: str


class Server:
    """`streamlit run app.py` on a home of its own, with the environment that a test gives."""

    def __init__(self, home: Path, *arguments: str, **environment: str) -> None:
        self.home, self.arguments, self.environment = home, arguments, environment
        self.log = home.with_suffix(f".{time.monotonic_ns()}.log")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])

    def __enter__(self) -> Server:
        command = [sys.executable, "-m", "streamlit", "run", "app.py", "--server.port"]
        command += [str(self.port), "--", *self.arguments]
        inherited = {name: text for name, text in os.environ.items() if "TOKEN" not in name}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=inherited | {"LAB_HOME": str(self.home)} | self.environment,
            )
        end = time.monotonic() + 90
        while "Finetune Lab: " not in self.printed:
            assert time.monotonic() < end, f"the server did not start:\n{self.printed}"
            assert self.process.poll() is None, f"the server ended:\n{self.printed}"
            time.sleep(0.05)
        while self.ask("/_stcore/health").status == 0:
            assert time.monotonic() < end, f"the server does not answer:\n{self.printed}"
            time.sleep(0.05)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    @property
    def printed(self) -> str:
        return self.log.read_text()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def token(self) -> str:
        match = re.search(r"Finetune Lab: http://127\.0\.0\.1:(\d+)/\?token=(\S+)", self.printed)
        assert match is not None, f"no address with a token was printed:\n{self.printed}"
        assert int(match[1]) == self.port, "the printed address has another port than the server"
        return match[2]

    def ask(
        self, path: str, headers: Headers = (), method: str = "GET", body: bytes = b""
    ) -> Answer:
        """Exactly these headers; Host is added where it is missing. Status 0: nobody listens."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for name, value in (*headers, ("Content-Length", str(len(body)))):
                connection.putheader(name, value.encode("latin-1"))
            if "Host" not in dict(headers):
                connection.putheader("Host", self.host)
            connection.endheaders(body)
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read().decode("latin-1"))
        except ConnectionRefusedError:
            return Answer(0, http.client.HTTPMessage(), "")
        finally:
            connection.close()

    def enter(self, token: str) -> tuple[str, str]:
        """The cookie header that the right token earns."""
        answer = self.ask(f"/?token={quote(token)}")
        assert answer.status == 303, f"the token did not let in: {answer.status} {answer.body}"
        return "Cookie", answer.headers["Set-Cookie"].partition(";")[0]

    def opens_socket(self, headers: Headers = (), origin: str = "", path: str = "") -> bool:
        """Whether the web socket is accepted; refused is 403."""
        address = f"ws://{self.host}/_stcore/stream{path}"
        try:
            with connect(
                address, additional_headers=headers, origin=Origin(origin) if origin else None
            ):
                return True
        except InvalidStatus as error:
            assert error.response.status_code == 403, "a refused web socket is answered by 403"
            return False


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose token the lab drew itself."""
    with Server(tmp_path_factory.mktemp("gate") / "home") as running:
        yield running


@pytest.fixture(scope="module")
def cookie(server: Server) -> tuple[str, str]:
    return server.enter(server.token)


@pytest.mark.parametrize("path", PATHS)
def test_no_path_answers_without_the_token(server: Server, path: str) -> None:
    for method in METHODS:
        answer = server.ask(path, method=method)
        assert answer.status == 401, f"{method} {path} was answered by {answer.status}"
        assert "Set-Cookie" not in answer.headers, f"{method} {path} gave a cookie away"


def test_with_the_cookie_the_server_itself_answers(server: Server, cookie: tuple[str, str]) -> None:
    assert "<title>Streamlit" in server.ask("/", [cookie]).body
    assert "<title>Streamlit" in server.ask("/monitor?run=x", [cookie]).body
    assert server.ask("/_stcore/health", [cookie]).body == "ok"
    assert "allowedOrigins" in server.ask("/_stcore/host-config", [cookie]).body
    assert server.ask("/media/0123456789abcdef.txt", [cookie]).status == 404
    upload = server.ask("/_stcore/upload_file/a/b", [cookie], "PUT", b"x")
    assert upload.status == 403, "Streamlit's own check of uploads (XSRF) is still there"
    assert "XSRF" in upload.body


def test_the_web_socket_opens_for_those_who_show_something_right(
    server: Server, cookie: tuple[str, str]
) -> None:
    assert not server.opens_socket()
    assert not server.opens_socket([("Cookie", cookie[1][:-1] + "x")])
    assert not server.opens_socket(path="?token=wrong")
    assert server.opens_socket([cookie])
    assert server.opens_socket([cookie], origin=f"http://{server.host}")
    assert server.opens_socket([("Authorization", f"Bearer {server.token}")])
    assert server.opens_socket(path=f"?token={server.token}")


@pytest.mark.parametrize("scheme", ["Bearer", "token", "BEARER"])
def test_a_program_shows_the_token_in_a_header(server: Server, scheme: str) -> None:
    answer = server.ask("/_stcore/health", [("Authorization", f"{scheme} {server.token}")])
    assert (answer.status, answer.body) == (200, "ok")


def test_the_right_token_earns_a_cookie_and_leaves_the_address(server: Server) -> None:
    answer = server.ask(f"/monitor?run=a%20b&token={server.token}&x=%C3%BC&x=")
    assert answer.status == 303
    assert answer.headers["Location"] == "/monitor?run=a%20b&x=%C3%BC&x="
    assert answer.headers["Cache-Control"] == "no-store", "the address holds the token"
    pair, *attributes = answer.headers["Set-Cookie"].split("; ")
    wanted = {"Path=/", "HttpOnly", "SameSite=Strict", f"Max-Age={30 * 24 * 3600}"}
    assert set(attributes) == wanted, "the cookie is not as strict as it has to be"
    assert server.token not in pair, "the cookie must not be the token itself"
    assert server.ask("/_stcore/health", [("Cookie", pair)]).body == "ok"


@pytest.mark.parametrize("path", ["//evil.example/a", "/\\evil.example", "///evil.example", "//"])
def test_the_way_on_never_leads_to_another_host(server: Server, path: str) -> None:
    location = server.ask(f"{path}?token={server.token}").headers["Location"]
    assert location.startswith("/"), location
    assert not location.startswith(("//", "/\\")), f"{path} leads to {location}"


def test_the_form_of_the_token_page(server: Server) -> None:
    page = server.ask("/runs?x=1", [("Accept", "text/html,*/*;q=0.8")])
    assert page.status == 401
    assert '<input id="token" name="token" type="password"' in page.body
    assert "http-equiv" not in page.body
    assert page.headers["Cache-Control"] == "no-store", "a browser would show it again"
    policy = page.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
    assert page.headers["WWW-Authenticate"] == "Bearer"
    form = [("Content-Type", "application/x-www-form-urlencoded"), ("Accept", "text/html")]
    good = server.ask("/runs?x=1", form, "POST", f"token=+{server.token}%0A".encode())
    assert (good.status, good.headers["Location"]) == (303, "/runs?x=1")
    pair = good.headers["Set-Cookie"].partition(";")[0]
    assert server.ask("/_stcore/health", [("Cookie", pair)]).body == "ok"
    right = f"token={server.token}&x=".encode()
    assert server.ask("/runs", form, "POST", right + b"y" * 8000).status == 303
    wrong = (b"", b"token=", b"token=wrong", b"token=" + b"x" * 100_000, b"\xff=%&token=%ff")
    for body in (*wrong, right + b"y" * 9000):  # more than a form of the page holds is not read
        bad = server.ask("/runs", form, "POST", body)
        assert bad.status == 401, f"the form took {body[:20]!r}"
        assert "This is not the token of this lab." in bad.body


def test_a_link_on_another_site_gets_in_by_way_of_the_token_page(server: Server) -> None:
    headers = [("Accept", "text/html"), ("Sec-Fetch-Site", "cross-site")]
    page = server.ask("/monitor?run=x", headers)
    assert page.status == 401
    assert '<meta http-equiv="refresh" content="0">' in page.body


def test_nothing_odd_lets_in_or_breaks_the_server(server: Server, cookie: tuple[str, str]) -> None:
    token, name = server.token, cookie[1].partition("=")[0]
    value = cookie[1].partition("=")[2]
    last, mac = value.split(".")
    later = f"{int(last) + 1}.{mac}"
    odd: list[tuple[str, Headers]] = [
        ("/?token=", ()),
        ("/?token", ()),
        (f"/?token={token[:-1]}", ()),
        (f"/?token={token}x", ()),
        (f"/?token={token.upper()}", ()),
        (f"/?Token={token}", ()),
        (f"/?token=wrong&token={token}", ()),
        (f"/?token={token}&token={token}", ()),
        (f"/?token={'x' * 30_000}", ()),
        ("/?token=%ff%00%zz", ()),
        (f"/?x=token={token}", ()),
        ("/", [("Authorization", "Bearer ")]),
        ("/", [("Authorization", "Bearer")]),
        ("/", [("Authorization", token)]),
        ("/", [("Authorization", f"Basic {token}")]),
        ("/", [("Authorization", "Bearer \xfc\xe9\xff")]),
        ("/", [("Authorization", f"Bearer {'x' * 30_000}")]),
        ("/", [("Authorization", "Bearer wrong"), ("Authorization", f"Bearer {token}")]),
        ("/", [("Cookie", f"{name}={token}")]),
        ("/", [("Cookie", f"{name}=")]),
        ("/", [("Cookie", f"{name}={later}")]),
        ("/", [("Cookie", f"{name}={last}.{'0' * 64}")]),
        ("/", [("Cookie", f"{name}={last}.")]),
        ("/", [("Cookie", f"{name}=\xfc; {name}=\xff; {name}={'9' * 5000}.{mac}")]),
        ("/", [("Cookie", f"{name}=a; {name}=b"), ("Cookie", f"{name}=c")]),
        ("/", [("Cookie", f"other={value}")]),
        ("/", [("Cookie", ";;;===;\xff")]),
        ("/", [("X-Forwarded-For", "127.0.0.1"), ("X-Real-IP", "127.0.0.1")]),
    ]
    for path, headers in odd:
        answer = server.ask(path, headers)
        assert answer.status == 401, f"{path[:60]} {str(headers)[:80]}: {answer.status}"
    assert "Traceback" not in server.printed, server.printed
    doubled = [("Cookie", f"{name}=nonsense; {name}={value}")]
    assert server.ask("/_stcore/health", doubled).body == "ok", "another's cookie locks nobody out"


def test_an_old_token_in_the_address_does_not_lock_out(
    server: Server, cookie: tuple[str, str]
) -> None:
    answer = server.ask("/runs?token=old&x=1", [cookie])
    assert (answer.status, answer.headers["Location"]) == (303, "/runs?x=1")
    assert "Set-Cookie" not in answer.headers


@pytest.mark.parametrize(
    "origin",
    [
        "http://127.0.0.1:{other}",
        "http://localhost:{port}",
        "http://127.0.0.1",
        "http://evil.example",
        "http://evil.example:{port}",
        "http://127.0.0.1:{port}@evil.example",
        "http://127.0.0.1:{port}.evil.example",
        "ftp://127.0.0.1:{port}",
        "null",
        "",
        "http://[",
        "http://127.0.0.1:99999999",
    ],
)
def test_pages_of_other_hosts_and_ports_are_refused(
    server: Server, cookie: tuple[str, str], origin: str
) -> None:
    foreign = origin.format(port=server.port, other=server.port + 1)
    if foreign:
        assert not server.opens_socket([cookie], origin=foreign)
    for method in ("PUT", "POST", "DELETE", "GET"):
        answer = server.ask("/_stcore/upload_file/a/b", [cookie, ("Origin", foreign)], method, b"x")
        assert answer.status == 403, f"{method} from {foreign!r} was answered by {answer.status}"
        assert "another page" in answer.body, answer.body


def test_a_tunnel_with_another_local_port_works(server: Server, cookie: tuple[str, str]) -> None:
    for host in ("localhost:9000", "127.0.0.1:9000", "[::1]:9000", "localhost"):
        headers = [cookie, ("Host", host), ("Origin", f"http://{host}")]
        assert server.ask("/_stcore/health", headers).body == "ok", host
    behind_tls = [cookie, ("Host", "localhost"), ("Origin", "https://localhost")]
    assert server.ask("/_stcore/health", behind_tls).body == "ok"


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "localhost.evil.example", ""])
def test_a_foreign_name_that_leads_here_is_refused(
    server: Server, cookie: tuple[str, str], host: str
) -> None:
    for path in ("/", f"/?token={server.token}", "/_stcore/health"):
        answer = server.ask(path, [cookie, ("Host", host)])
        assert answer.status in (400, 403), f"{host!r} was answered by {answer.status}"
        assert "Set-Cookie" not in answer.headers


def test_other_ports_may_not_frame_the_lab(server: Server, cookie: tuple[str, str]) -> None:
    headers = server.ask("/", [cookie]).headers
    assert headers["Content-Security-Policy"] == "frame-ancestors 'self'"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert headers["Referrer-Policy"] == "same-origin", "addresses name runs"


def test_the_token_is_kept_where_only_its_owner_reads_it(server: Server) -> None:
    file = server.home / "access.json"
    assert json.loads(file.read_text())["token"] == server.token
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(server.home.stat().st_mode) == 0o700


def test_a_cookie_outlives_the_server_but_not_the_token(
    server: Server, cookie: tuple[str, str], tmp_path: Path
) -> None:
    home = tmp_path / "copy"
    shutil.copytree(server.home, home)
    with Server(home) as again:
        assert again.token == server.token
        assert again.ask("/_stcore/health", [cookie]).body == "ok", "a restart asked for the token"
    own = "of-my-own ä+/&="
    with Server(home, LAB_TOKEN=own) as fixed:
        assert own not in fixed.printed, "a token that was given is not written into a log"
        assert "LAB_TOKEN has fewer than 16" not in fixed.printed
        assert fixed.ask("/_stcore/health", [cookie]).status == 401, "an old token's cookie counts"
        assert fixed.ask(f"/?token={server.token}").status == 401, "the drawn token counts too"
        fresh = fixed.enter(own)
        assert fresh[1].partition("=")[0] != cookie[1].partition("=")[0], "the cookies clash"
        assert fixed.ask("/_stcore/health", [fresh, cookie]).body == "ok"


def test_without_a_token_everybody_is_warned(tmp_path: Path) -> None:
    with Server(tmp_path / "open", "--no-token") as server:
        assert f"Finetune Lab: http://127.0.0.1:{server.port}/\n" in server.printed
        assert "WARNING: This lab was started without a token" in server.printed
        assert server.ask("/_stcore/health").body == "ok"
        assert server.opens_socket()
        assert not server.opens_socket(origin=f"http://127.0.0.1:{server.port + 1}")
        assert server.ask("/", [("Host", "evil.example")]).status == 403


def test_home_warns_where_there_is_no_token(
    open_page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "without a token" not in words(open_page("home"))
    monkeypatch.setenv("LAB_NO_TOKEN", "1")
    assert "This lab was started without a token" in words(open_page("home")).replace("\\", "")


def test_the_cookie_of_an_encrypted_page_goes_over_no_other_connection(lab_home: Path) -> None:
    for scheme, is_secure in (("http", False), ("https", True)):
        scope = {
            "type": "http", "method": "GET", "scheme": scheme, "path": "/", "query_string": b"",
            "headers": [(b"host", b"localhost")], "server": ("localhost", 443),
        }  # fmt: skip
        cookie = Gate(lambda *arguments: None)._let_in(Request(scope)).headers["Set-Cookie"]  # type: ignore[arg-type, return-value]
        assert ("Secure" in cookie.split("; ")) == is_secure, scheme
        assert {"HttpOnly", "SameSite=Strict"} <= set(cookie.split("; "))


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_token_of_ones_own_is_shown_on_a_terminal_and_written_into_no_log(
    lab_home: Path, monkeypatch: pytest.MonkeyPatch, is_terminal: bool
) -> None:
    monkeypatch.setenv("LAB_TOKEN", "mine-and-nobody-elses-0123456789")
    access.current.cache_clear()
    stdout = SimpleNamespace(isatty=lambda: is_terminal)
    monkeypatch.setattr(gate, "sys", SimpleNamespace(stdout=stdout))
    text = gate.announcement()
    assert ("mine-and-nobody" in text) == is_terminal
    assert ("It asks for the token in LAB_TOKEN." in text) != is_terminal
