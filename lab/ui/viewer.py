"""`python -m lab.ui.viewer URL --page runs`: viewers that ask like a browser and draw nothing.

They speak the web socket of the page, keep its timers (`run_every`) and measure how long the server
takes; what a browser spends on drawing belongs to the reader's machine, not to the server's.
LAB_TOKEN lets them in.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import time
from dataclasses import dataclass, field
from typing import Any

import websockets
from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from websockets.typing import Origin, Subprotocol


@dataclass
class Viewer:
    """One open page. Times in seconds, from the request to the end of the script's run."""

    url: str
    page: str
    query: str
    first_s: float = 0.0
    rerun_s: list[float] = field(default_factory=list)
    refresh_s: list[float] = field(default_factory=list)
    received_bytes: int = 0
    exceptions: list[str] = field(default_factory=list)
    _timers: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    _started_at: dict[str, float] = field(default_factory=dict)
    _page_hash: str = ""
    _settled: asyncio.Event = field(default_factory=asyncio.Event)

    async def watch(self, seconds: float, reruns: int) -> None:
        """Open the page, run it again `reruns` times, then look at it for `seconds`."""
        address = self.url.replace("http", "ws", 1) + "/_stcore/stream"
        async with websockets.connect(
            address,
            subprotocols=[Subprotocol("streamlit")],
            origin=Origin(self.url),
            max_size=None,
            additional_headers={"Authorization": f"Bearer {os.environ.get('LAB_TOKEN', '')}"},
        ) as socket:
            reader = asyncio.create_task(self._read(socket))
            self.first_s = await self._run_whole(socket)
            for _ in range(reruns):
                self.rerun_s.append(await self._run_whole(socket))
            await asyncio.sleep(seconds)
            for timer in self._timers.values():
                timer.cancel()
            reader.cancel()

    async def _run_whole(self, socket: Any) -> float:
        began = time.perf_counter()
        self._settled.clear()
        await self._ask(socket, "")
        await asyncio.wait_for(self._settled.wait(), 120)
        return time.perf_counter() - began

    async def _ask(self, socket: Any, fragment: str) -> None:
        message = BackMsg()
        message.rerun_script.query_string = self.query
        message.rerun_script.page_script_hash = self._page_hash
        if not self._page_hash:
            message.rerun_script.page_name = self.page
        message.rerun_script.fragment_id = fragment
        message.rerun_script.is_auto_rerun = bool(fragment)
        if fragment:
            self._started_at.setdefault(fragment, time.perf_counter())
        await socket.send(message.SerializeToString())

    async def _read(self, socket: Any) -> None:
        async for data in socket:
            self.received_bytes += len(data)
            message = ForwardMsg()
            message.ParseFromString(data)
            kind = message.WhichOneof("type")
            if kind == "new_session":
                self._page_hash = message.new_session.page_script_hash
            elif kind == "auto_rerun":
                rerun = message.auto_rerun
                self._begin(socket, rerun.fragment_id, rerun.interval)
            elif kind == "delta" and message.delta.new_element.WhichOneof("type") == "exception":
                self.exceptions.append(message.delta.new_element.exception.message)
            elif kind == "script_finished":
                self._finished(message)

    def _begin(self, socket: Any, fragment: str, interval: float) -> None:
        async def again() -> None:
            while True:
                await asyncio.sleep(interval)
                await self._ask(socket, fragment)

        if fragment in self._timers:
            self._timers[fragment].cancel()
        self._timers[fragment] = asyncio.create_task(again())

    def _finished(self, message: ForwardMsg) -> None:
        name = ForwardMsg.ScriptFinishedStatus.Name(message.script_finished)
        if "FRAGMENT" not in name:
            self._settled.set()
            return
        finished_at = (
            time.perf_counter()
        )  # one run answers every fragment that was asked for before it
        self.refresh_s += [finished_at - began for began in self._started_at.values()]
        self._started_at.clear()


async def look(
    url: str, page: str, query: str, viewers: int, seconds: float, reruns: int
) -> dict[str, Any]:
    """What `viewers` at once saw of one page."""
    watching = [Viewer(url, page, query) for _ in range(viewers)]
    await asyncio.gather(*(viewer.watch(seconds, reruns) for viewer in watching))
    refreshes = [value for viewer in watching for value in viewer.refresh_s]
    again = [value for viewer in watching for value in viewer.rerun_s]
    return {
        "viewers": viewers,
        "first_s": max(viewer.first_s for viewer in watching),
        "rerun_median_s": statistics.median(again) if again else None,
        "rerun_worst_s": max(again, default=None),
        "refreshes": [len(viewer.refresh_s) for viewer in watching],
        "refresh_median_s": statistics.median(refreshes) if refreshes else None,
        "refresh_worst_s": max(refreshes, default=None),
        "received_bytes": sum(viewer.received_bytes for viewer in watching),
        "exceptions": [text for viewer in watching for text in viewer.exceptions],
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m lab.ui.viewer")
    parser.add_argument("url")
    parser.add_argument("--page", default="")
    parser.add_argument("--query", default="")
    parser.add_argument("--viewers", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=0.0)
    parser.add_argument("--reruns", type=int, default=5)
    arguments = parser.parse_args()
    figures = look(
        arguments.url,
        arguments.page,
        arguments.query,
        arguments.viewers,
        arguments.seconds,
        arguments.reruns,
    )
    print(json.dumps(asyncio.run(figures)))


if __name__ == "__main__":
    main()
