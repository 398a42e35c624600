"""result.json: how an attempt ended, and what the run has used and come to by then.

Whoever writes one takes `write_result`, whoever reads one `read_result`: in a file that is older,
newer or damaged, what is missing is None or "" (`lab/dataclass_json.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from lab.atomic_files import read_object, write_json
from lab.dataclass_json import read
from lab.paths import RunDir


@dataclass(frozen=True)
class TrainingSummary:
    """Figures over all attempts, None for what the run did not come to. `peaks`: bytes by phase.
    `probe`: what is measured of forgetting, in nats a token."""

    step: int | None = None
    tokens: int | None = None
    loss_tokens: int | None = None
    seconds: float | None = None
    flops: float | None = None
    parameters: int | None = None
    trainable: int | None = None
    planned_steps: int | None = None
    packing: str = ""
    peak_bytes: int | None = None
    peaks: Mapping[str, int] = field(default_factory=dict)
    artifact_bytes: int | None = None
    probe: Mapping[str, float] = field(default_factory=dict)  # by the keys of metrics.jsonl

    def to_json(self) -> dict[str, Any]:
        stored = {
            name: value for name, value in asdict(self).items() if value not in (None, "", {})
        }
        stored.pop("probe", None)
        return {**stored, **self.probe}

    @staticmethod
    def from_json(stored: Mapping[str, Any]) -> TrainingSummary:
        probe = {key: value for key, value in stored.items() if key.startswith("probe/")}
        return read(TrainingSummary, {**stored, "probe": probe}) or TrainingSummary()


@dataclass(frozen=True)
class OutOfMemory:
    """The phase in which memory ran out, and what had been predicted: bytes, the largest first."""

    phase: str = ""
    predicted_peak_bytes: int | None = None
    parts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class ForcedEnd:
    """killed.json: the signal that the lab ended a worker with, for which command and why.

    `pid`, `start` and `boot` are those of its process.json, `time` is in seconds since the epoch;
    `state`, `message` and `hint` are what the run's result says of it.
    """

    v: int = 1
    pid: int | None = None
    start: int | None = None
    boot: str = ""
    command: str = ""
    signal: str = ""
    why: str = ""
    state: str = ""
    time: float | None = None
    message: str = ""
    hint: str = ""


@dataclass(frozen=True)
class Result:
    """`state` is one of `status.ENDED`. `started`, `ended`: seconds since the epoch; an attempt
    that never started has no first. `killed`: the signal that ended it."""

    state: str = ""
    message: str = ""
    hint: str = ""
    attempt: int | None = None
    started: float | None = None
    ended: float | None = None
    summary: TrainingSummary = TrainingSummary()
    out_of_memory: OutOfMemory | None = None
    killed: ForcedEnd | None = None

    @property
    def seconds(self) -> float | None:
        """From the start of the worker to its end."""
        if not self.started or not self.ended:
            return None
        return max(0.0, self.ended - self.started)

    def to_json(self) -> dict[str, Any]:
        stored = {name: value for name, value in asdict(self).items() if value is not None}
        return {"v": 1, **stored, "summary": self.summary.to_json()}

    @staticmethod
    def from_json(stored: Mapping[str, Any]) -> Result:
        summary = stored.get("summary")
        summary = TrainingSummary.from_json(summary if isinstance(summary, Mapping) else {})
        result = read(Result, {**stored, "summary": {}}) or Result()
        return replace(result, summary=summary)


def read_result(run: RunDir) -> Result | None:
    """None while the attempt has not ended."""
    return read_file(run.result)


def read_file(file: Path) -> Result | None:
    """The result in a file, which may be that of an earlier attempt; None if there is none."""
    stored = read_object(file)
    return None if stored is None else Result.from_json(stored)


def forced_end(run: RunDir) -> ForcedEnd | None:
    """What killed.json says of the worker in process.json; None if the lab did not kill it."""
    killed, worker = read(ForcedEnd, read_object(run.killed)), read_object(run.process)
    if killed is None or worker is None or killed.state not in ("stopped", "cancelled"):
        return None
    is_same = all(getattr(killed, key) == worker.get(key) for key in ("pid", "start", "boot"))
    return killed if is_same else None


def write_result(run: RunDir, result: Result) -> None:
    """Its existence says that the attempt has ended. Raises OSError."""
    write_json(run.result, result.to_json())
