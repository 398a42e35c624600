"""The browser's timers of a page that was left a moment ago, spoken over the web socket."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import websockets
from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from websockets.typing import Origin, Subprotocol

from lab import process
from lab.atomic_files import read_object
from lab.paths import RunDir
from lab.runs.status import status
from tests.e2e.conftest import Server

pytestmark = pytest.mark.e2e
PAIRS = (
    ("new_run", "runs"), ("monitor", "new_run"), ("memory", "new_run"), ("", "memory"),
)  # fmt: skip
QUIET_S = 1.5  # without an answer for the page that was left


class Tab:
    """One open tab of a browser that draws nothing."""

    def __init__(self, socket: Any) -> None:
        self.socket = socket
        self.pages: list[str] = []  # the hash of the page of each run of the script
        self.timers: dict[str, str] = {}  # fragment → hash of the page that it is drawn on
        self.hashes: dict[str, str] = {}  # path of a page → its hash

    async def ask(self, **fields: Any) -> None:
        message = BackMsg()
        for name, value in fields.items():
            setattr(message.rerun_script, name, value)
        await self.socket.send(message.SerializeToString())

    async def read(self, patience_s: float = 120.0) -> None:
        """Until the script is over, or nothing has come for so long."""
        while True:
            try:
                data = await asyncio.wait_for(self.socket.recv(), patience_s)
            except TimeoutError:
                return
            message = ForwardMsg()
            message.ParseFromString(data)
            kind = message.WhichOneof("type")
            if kind == "new_session":
                self.pages.append(message.new_session.page_script_hash)
            elif kind == "navigation":
                self.hashes = {
                    entry.url_pathname: entry.page_script_hash
                    for entry in message.navigation.app_pages
                }
            elif kind == "auto_rerun":
                self.timers[message.auto_rerun.fragment_id] = self.pages[-1]
            elif kind == "script_finished":
                return

    async def open(self, page: str) -> None:
        wanted = self.hashes.get(page, "")
        await self.ask(page_script_hash=wanted)
        await self.read()
        async with asyncio.timeout(100):
            while wanted and self.pages[-1:] != [wanted]:  # what ended was a timer, late
                await self.read()


def halted(run: RunDir) -> None:
    """Let the run's worker begin, and then take no more processor time: it is only to be there."""
    deadline = time.monotonic() + 120
    while status(run).state != "training":
        assert time.monotonic() < deadline, "the run did not begin"
        time.sleep(0.1)
    assert process.send(read_object(run.process) or {}, signal.SIGSTOP)


def test_a_timer_of_the_page_before_does_not_bring_it_back(
    server: Server, start: Callable[..., Any]
) -> None:
    """The list of running work is on every page, and asks for itself every three seconds. A browser
    that is told of the page before clears the one that it shows: a white page."""
    halted(start("lora", train={"max_steps": 100_000, "save_steps": 0, "eval_steps": 5_000}))

    async def story() -> None:
        async with websockets.connect(
            server.url.replace("http", "ws", 1) + "/_stcore/stream",
            subprotocols=[Subprotocol("streamlit")],
            origin=Origin(server.url),
            max_size=None,
            additional_headers={"Authorization": f"Bearer {server.token}"},
        ) as socket:
            tab = Tab(socket)
            await tab.open("")
            for left, opened in PAIRS:
                tab.timers.clear()
                await tab.open(left)
                before, now = tab.hashes[left], tab.hashes[opened]
                timers = [fragment for fragment, page in tab.timers.items() if page == before]
                assert timers, "the list of running work is drawn again by itself"
                await tab.open(opened)
                tab.pages.clear()
                for fragment in timers:
                    await tab.ask(fragment_id=fragment, page_script_hash=before, is_auto_rerun=True)
                began = time.monotonic()
                while time.monotonic() - began < QUIET_S:
                    await tab.read(patience_s=QUIET_S / 2)
                assert set(tab.pages) <= {now}, f"{left} is drawn again, though {opened} is open."

    with ThreadPoolExecutor(1) as pool:  # the thread of a browser's stories has a loop that runs
        pool.submit(asyncio.run, story()).result(timeout=120)
