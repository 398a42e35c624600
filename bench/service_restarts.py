"""Supervisor and web server killed again and again during a queue of five runs.

Every run has to end as it would have: once, every step once, with the weights of a run that
that was not disturbed, bit for bit.
"""

from __future__ import annotations

import hashlib
import random
import signal
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from bench.fault_injection import home_at, specs
from bench.web_server import Web
from lab import paths, process
from lab.atomic_files import read_object
from lab.paths import RunDir
from lab.preflight.client import planner
from lab.runs import actions, record_reader, supervisor_start
from lab.runs.status import status

RUNS = 5
MAX_RUN_S = 900.0


@dataclass
class Report:
    """What the kills did to the queue."""

    supervisor_kills: int = 0
    web_kills: int = 0
    runs: int = 0
    done: int = 0
    once: int = 0
    equal: int = 0
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        return self.done == self.once == self.equal == self.runs and not self.failures


def services(kills: int, seed: int = 0, tell: Callable[[str], object] = print) -> Report:
    """Kill supervisor and web server `kills` times each while five runs wait and run."""
    began, chance, report = time.monotonic(), random.Random(seed), Report(runs=RUNS)
    with tempfile.TemporaryDirectory(prefix="lab-services-") as folder, home_at(Path(folder)):
        spec = specs(Path(folder))[0]
        spec["train"] |= {"max_steps": 40}
        checked = planner.check(spec)
        reference = actions.create_run_dir(checked)
        actions.submit(reference)
        actions.wait(reference, timeout_s=MAX_RUN_S)
        tell("reference run done")
        web = Web(Path(folder) / "web.log")
        try:
            runs = [actions.create_run_dir(checked) for _ in range(RUNS)]
            for run in runs:
                actions.submit(run)
            _disturb(runs, web, kills, chance, report, tell)
        finally:
            web.kill()
            planner.close()
            for run in paths.all_runs():
                process.send_group(read_object(run.process), signal.SIGKILL)
            process.send(read_object(supervisor_start.record_file()), signal.SIGKILL)
        for run in runs:
            _hold_against(run, reference, report)
    report.seconds = time.monotonic() - began
    return report


def _disturb(
    runs: list[RunDir],
    web: Web,
    kills: int,
    chance: random.Random,
    report: Report,
    tell: Callable[[str], object],
) -> None:
    """Kill and restart until the runs have ended and the kills are done."""
    web.start()
    next_web = next_supervisor = time.monotonic() + 1.0
    end = time.monotonic() + MAX_RUN_S
    while time.monotonic() < end:
        now_s = time.monotonic()
        ended = sum(status(run).has_ended for run in runs)
        if ended == len(runs):
            return
        supervisor_start.ensure_if_waiting()
        record = read_object(supervisor_start.record_file())
        if now_s > next_supervisor and report.supervisor_kills < kills:
            if process.send(record, signal.SIGKILL):
                report.supervisor_kills += 1
            next_supervisor = now_s + chance.uniform(0.3, 3.0)
        if now_s > next_web and report.web_kills < kills and web.answers():
            web.kill()
            web.start()
            report.web_kills += 1
            next_web = now_s + chance.uniform(0.3, 2.0)
            tell(
                f"{ended} of {len(runs)} runs ended, {report.supervisor_kills} kills of the "
                f"supervisor, {report.web_kills} of the web server"
            )
        time.sleep(0.05)
    report.failures.append(f"not ended after {MAX_RUN_S:.0f} s: {[status(run) for run in runs]}")


def _hold_against(run: RunDir, reference: RunDir, report: Report) -> None:
    state = status(run)
    report.done += state.state == "done"
    attempts = [event.get("attempt") for event in record_reader.events(run, "plan")]
    steps = [record["step"] for record in record_reader.metrics(run, "train")]
    planned = [record["step"] for record in record_reader.metrics(reference, "train")]
    report.once += attempts == [1] and steps == planned
    report.equal += _weights(run) == _weights(reference) != {}
    if state.state != "done":
        report.failures.append(f"{run.id}: {state}")


def _weights(run: RunDir) -> dict[str, str]:
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in run.artifact.glob("*.safetensors")
    }
