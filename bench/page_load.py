"""How long pages take against the number of runs and steps, and what five viewers cost.

A real web server, asked over its web socket by viewers that draw nothing (`lab.ui.viewer`), so that
the figures are the server's own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from bench.fault_injection import home_at
from bench.synthetic_runs import beat, make_run
from bench.web_server import Web
from lab import paths
from lab.errors import LabError
from lab.paths import RunDir
from lab.preflight.start import start_run
from lab.runs import actions, record_reader
from lab.runs.status import status

RUNS = (10, 100, 1000)
STEPS = (1_000, 10_000, 100_000)
VIEWERS = 5
COMPARED = (12, 36)  # runs of 10,000 steps: one seed each, three seeds each


def ui(seconds: float, tell: Callable[[str], object] = print) -> dict[str, Any]:
    """{"start", "runs", "steps", "compare", "viewers"}: every latency in seconds.

    `seconds` is how long five viewers look at an active run while the growth of the web process is
    taken; ten minutes show a leak, one shows the pace.
    """
    figures: dict[str, Any] = {"start": _start(tell), "runs": [], "steps": [], "compare": []}
    for count in RUNS:
        with _home() as folder:
            for i in range(count):
                make_run(i, 20)
            timing = _look(folder, "runs", "")
            figures["runs"].append({"runs": count, **_times(timing)})
            tell(f"Runs page, {count} runs: {_in_words(timing)}")
    for count in STEPS:
        with _home() as folder:
            run = make_run(0, count)
            timing = _look(folder, "monitor", f"run={run.id}")
            figures["steps"].append({"steps": count, **_times(timing)})
            tell(f"Monitor, {count:,} steps: {_in_words(timing)}")
    for count in COMPARED:
        with _home() as folder:
            names = ",".join(make_run(i, STEPS[1]).id for i in range(count))
            timing = _look(folder, "compare", f"runs={names}")
            figures["compare"].append({"runs": count, "steps": STEPS[1], **_times(timing)})
            tell(f"Compare, {count} runs of {STEPS[1]:,} steps: {_in_words(timing)}")
    with _home() as folder:
        run = make_run(0, STEPS[-1], active=True)
        figures["viewers"] = _watch(folder, run, seconds)
        tell(f"{VIEWERS} viewers of an active run: {figures['viewers']}")
    return figures


def beside_a_worker(seconds: float, tell: Callable[[str], object] = print) -> dict[str, Any]:
    """Steps a second of a real run on the built-in model, alone and with five viewers."""
    spec = {
        "name": "beside viewers",
        "method": {"name": "lora"},
        "data": {"max_length": 128},
        "train": {"max_steps": 5_000, "batch_size": 1, "save_steps": 0, "sample_steps": 0},
    }
    with _home() as folder:
        run = start_run(spec)
        try:
            while not record_reader.metrics(run, "train"):
                if status(run).has_ended:
                    raise LabError(f"The run ended: {status(run).message}", f"See {run.log}.")
                time.sleep(0.5)
            alone = _pace(run, seconds)
            tell(f"alone: {alone:.2f} steps/s")
            with _server(folder) as web:
                viewing = _viewers(web, "monitor", f"run={run.id}", seconds + 5)
                time.sleep(5)
                assert web.process is not None
                server = psutil.Process(web.process.pid)
                before = sum(server.cpu_times()[:2])
                watched = _pace(run, seconds)
                cores = (sum(server.cpu_times()[:2]) - before) / seconds
                timing = _answer(viewing)
        finally:  # a worker that is left behind would train on for hours
            if not status(run).has_ended:
                actions.command(run, "cancel")
                actions.wait(run, timeout_s=120)
    return {
        "steps_per_s_alone": alone,
        "steps_per_s_watched": watched,
        "ratio": watched / alone,
        "server_cores": cores,
        "refreshes_per_viewer_per_s": min(timing["refreshes"]) / timing["seconds"],
        **_times(timing),
    }


def _pace(run: RunDir, seconds: float) -> float:
    before = record_reader.metrics(run, "train")[-1]["step"]
    began = time.monotonic()
    time.sleep(seconds)
    return float(record_reader.metrics(run, "train")[-1]["step"] - before) / (
        time.monotonic() - began
    )


def _start(tell: Callable[[str], object]) -> dict[str, float]:
    """From the start of the process to the whole first page."""
    with _home() as folder:
        began = time.monotonic()
        with _server(folder) as web:
            up_s = time.monotonic() - began
            _answer(_viewers(web, "", "", 0.0, reruns=0))
            imports = _answer(_viewers(web, "", "", 0.0, reruns=3))
        tell(f"server answers after {up_s:.2f} s")
        return {"answers_s": up_s, "first_page_s": imports["first_s"]}


def _watch(folder: Path, run: RunDir, seconds: float) -> dict[str, Any]:
    with _server(folder) as web:
        assert web.process is not None
        server = psutil.Process(web.process.pid)
        viewing = _viewers(web, "monitor", f"run={run.id}", seconds)
        time.sleep(min(10.0, seconds / 3))
        resident, used = server.memory_info().rss, sum(server.cpu_times()[:2])
        began, step = time.monotonic(), STEPS[-1]
        grown = [resident]  # by the minute: a leak goes on, a cache fills up
        while viewing.poll() is None:
            step += 1
            beat(run, step)
            time.sleep(1.0)
            if time.monotonic() - began > 60 * len(grown):
                grown.append(server.memory_info().rss)
        spent = time.monotonic() - began
        growth = server.memory_info().rss - resident
        cores = (sum(server.cpu_times()[:2]) - used) / spent
        timing = _answer(viewing)
    return {
        "seconds": spent,
        "resident_bytes": resident,
        "growth_bytes": growth,
        "resident_by_minute": grown,
        "server_cores": cores,
        "refreshes_per_viewer_per_s": min(timing["refreshes"]) / timing["seconds"],
        **_times(timing),
    }


@contextmanager
def _home() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="lab-ui-") as folder, home_at(Path(folder)):
        paths.make_folder(paths.home())
        yield Path(folder)


@contextmanager
def _server(folder: Path) -> Iterator[Web]:
    web = Web(folder / "web.log")
    web.start()
    try:
        web.wait()
        yield web
    finally:
        web.kill()


def _look(folder: Path, page: str, query: str) -> dict[str, Any]:
    with _server(folder) as web:
        _answer(_viewers(web, "", "", 0.0, reruns=0))  # the libraries of the first page
        return _answer(_viewers(web, page, query, 0.0, viewers=1, reruns=10))


def _viewers(
    web: Web, page: str, query: str, seconds: float, viewers: int = VIEWERS, reruns: int = 0
) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "lab.ui.viewer", web.url, "--page", page, "--query", query]
    command += ["--viewers", str(viewers), "--seconds", str(seconds), "--reruns", str(reruns)]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        text=True,
        cwd=paths.ROOT,
        env=os.environ | {"LAB_TOKEN": web.token},
    )


def _answer(viewing: subprocess.Popen[str]) -> dict[str, Any]:
    out, _ = viewing.communicate()
    if viewing.returncode:
        raise LabError("The viewers failed.", "Their error stands above.")
    answer: dict[str, Any] = json.loads(out)
    if answer["exceptions"]:
        raise LabError(f"The page showed an error: {answer['exceptions'][0]}", "See web.log.")
    return answer


def _times(timing: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in timing.items() if key.endswith("_s")}


def _in_words(timing: dict[str, Any]) -> str:
    return f"opens in {timing['first_s']:.3f} s, runs again in {timing['rerun_median_s']:.3f} s"
