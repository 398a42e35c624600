"""A real server and a real browser; a failing story leaves a picture, the console and the log.

One server serves all stories of a process, on one home that is empty at the start of each: a server
and a planner that has imported its libraries are what stories would wait for most.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright
from playwright.sync_api import Error as PlaywrightError

from lab import access, paths
from lab.paths import ROOT
from lab.runs import queue
from tests.conftest import end_workers, processor_timed
from tests.e2e import browser as chromium

PATIENCE_S = 150  # at most for each thing to come: the machine is busy with other stories
expect.set_options(timeout=1000 * PATIENCE_S)
RESULTS = ROOT / "test-results"
FAILED, CONSOLE = pytest.StashKey[bool](), pytest.StashKey[list[str]]()
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


class Server:
    """One web server on a home of its own."""

    def __init__(self, home: Path, models: Path) -> None:
        """`models`: the folder of the built-in model."""
        self.home, self.models = home, models
        home.mkdir(parents=True, exist_ok=True)
        self.log = home / "web.log"
        self.token = secrets.token_hex(16)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def address(self) -> str:
        """Where a browser that was never here has to begin."""
        return f"{self.url}/?token={self.token}"

    def start(self) -> float:
        """Start it; seconds until it answered."""
        began = time.monotonic()
        command = [sys.executable, "-m", "streamlit", "run", "app.py", "--server.port"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, str(self.port)],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ
                | {"LAB_HOME": str(self.home), "LAB_MODELS": str(self.models)}
                | {"HF_HUB_OFFLINE": "1", "LAB_TOKEN": self.token},
            )
        health = urllib.request.Request(
            f"{self.url}/_stcore/health", headers={"Authorization": f"Bearer {self.token}"}
        )
        while time.monotonic() - began < 60:
            try:
                with urllib.request.urlopen(health, timeout=1):
                    return time.monotonic() - began
            except OSError:
                time.sleep(0.05)
        raise AssertionError(f"the server did not start:\n{self.log.read_text()}")

    def kill(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture(scope="session")
def chrome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Its first context has a folder of its own, where the browser leaves what it has compiled: in
    a context without one it compiles the charts' library again for each window."""
    path = chromium.installed()
    assert path is not None, "no browser: python tests/e2e/browser.py"
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            tmp_path_factory.mktemp("profile"), executable_path=path, args=list(FLAGS)
        )
        context.set_default_timeout(1000 * PATIENCE_S)
        assert context.browser is not None
        yield context.browser
        context.close()


@pytest.fixture(scope="session")
def running_server(
    small_models: Path, forecast_cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server") / "home", small_models)
    processor_timed(server.home)
    paths.make_folder(server.home / "cache")
    (server.home / "cache" / "memory").symlink_to(forecast_cache)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def lab_home(
    running_server: Server, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[Path]:
    """The server's home, which holds nothing yet; processes that a story leaves are killed.

    The first story alone keeps a warm worker: each costs seconds of imports, and after a run the
    next one is begun, which nobody waits for."""
    home = running_server.home
    monkeypatch.setenv("LAB_HOME", str(home))
    monkeypatch.setenv("LAB_MODELS", str(running_server.models))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    access.current.cache_clear()
    queue.change(spare="quick_start" in request.node.name)
    yield home
    end_workers(home)
    end_chat(home)
    # without access.json a restart would know no browser; what was traced for one story's form
    # need not be traced for the next one's, nor for that of another test process
    empty(home, (running_server.log.name, "access.json", "cache", "machine.json"))
    if (home / "cache").is_dir():
        empty(home / "cache", ("memory",))


def empty(folder: Path, stay: Sequence[str]) -> None:
    """Remove what lies in `folder`, but for the names to `stay`; the server may still write there
    for a moment."""
    for entry in (entry for entry in folder.iterdir() if entry.name not in stay):
        for seconds in (0.1, 0.3, 1.0, 3.0, 0.0):
            try:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink(missing_ok=True)
                break
            except OSError:
                if not seconds:
                    raise
                time.sleep(seconds)


@pytest.fixture
def server(running_server: Server, lab_home: Path) -> Server:
    return running_server


def end_chat(home: Path) -> None:
    from lab import process
    from lab.atomic_files import read_object

    process.send(read_object(home / "chat" / "process.json"), signal.SIGKILL)


@pytest.fixture
def open_lab(
    chrome: Browser, server: Server, request: pytest.FixtureRequest
) -> Iterator[Callable[..., Page]]:
    """Opens the lab's first page in a browser that was never here; closed after the test."""
    context = chrome.contexts[0]
    stay = context.pages[0]  # without a window the browser would end
    console = request.node.stash[CONSOLE] = []

    def opened(theme: Any = "light", width: int = 1280) -> Page:
        page = context.new_page()
        page.on("console", lambda message: console.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: console.append(f"uncaught: {error}"))
        context.clear_cookies()
        stored = {"origin": server.url, "storageTypes": "local_storage,indexeddb"}
        context.new_cdp_session(page).send("Storage.clearDataForOrigin", stored)
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=theme)
        page.goto(server.address)
        return page

    yield opened
    for page in context.pages:
        if page is not stay:
            page.close()


def other_browser(chrome: Browser, **options: Any) -> Page:
    """A window of a browser that shares nothing with the first; its context is to be closed."""
    context = chrome.new_context(**{"viewport": {"width": 1280, "height": 900}} | options)
    context.set_default_timeout(1000 * PATIENCE_S)
    return context.new_page()


@pytest.fixture
def page(
    open_lab: Callable[..., Page], server: Server, request: pytest.FixtureRequest
) -> Iterator[Page]:
    """A fresh browser window on the server's home page."""
    page = open_lab()
    settled(page)
    yield page
    if request.node.stash.get(FAILED, False):
        RESULTS.mkdir(exist_ok=True)
        stem = RESULTS / request.node.name
        page.screenshot(path=f"{stem}.png", full_page=True)
        stem.with_suffix(".console.txt").write_text("\n".join(request.node.stash[CONSOLE]))
        stem.with_suffix(".server.txt").write_text(server.log.read_text())


MAX_SHOWN_CHARS = 3000


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Any:
    report = yield
    if report.when == "call" and report.failed:
        item.stash[FAILED] = True
        report.sections += what_the_windows_showed(item)
    return report


def what_the_windows_showed(item: Any) -> list[tuple[str, str]]:
    """(heading, text) of each open page and of the server's log, for a story that failed."""
    sections = []
    browser, server = (item.funcargs.get(name) for name in ("chrome", "server"))
    for page in [page for context in browser.contexts for page in context.pages] if browser else []:
        try:
            dialogs = page.get_by_role("dialog").all_inner_texts()  # first: pages are long
            text = "\n".join([*dialogs, page.inner_text("body", timeout=5000)])
        except PlaywrightError as error:
            text = str(error)
        sections.append((f"page {page.url.split('token=')[0]}", text[:MAX_SHOWN_CHARS]))
    console = "\n".join(item.stash.get(CONSOLE, []))
    sections.append(("console", console[-MAX_SHOWN_CHARS:]))
    if server is not None:
        sections.append(("server", server.log.read_text()[-MAX_SHOWN_CHARS:]))
    return sections


def settled(page: Page) -> None:
    """Wait until the page has been drawn and its script has come to rest."""
    page.wait_for_selector("[data-testid=stApp]", timeout=1000 * PATIENCE_S)
    page.wait_for_selector("[data-test-script-state='notRunning']", timeout=1000 * PATIENCE_S)


def sideways(page: Page) -> int:
    """By how many pixels the page is wider than its window."""
    return int(
        page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    )


def widget(page: Page, key: str) -> Any:
    """The element of a widget by its key."""
    return page.locator(f".st-key-{key.replace('.', '-')}").first


def fill(page: Page, key: str, value: str) -> None:
    """Type into a field and leave it, once it is drawn: what is typed before is lost."""
    box = widget(page, key).locator("input, textarea").first
    expect(box).to_be_visible()
    settled(page)
    box.click()
    box.fill(value)
    box.press("Enter")
    settled(page)
