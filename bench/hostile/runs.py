"""Run directories with arbitrary contents: reading them never raises."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.hostile.case import ODD, Case, WronglyTaken, damaged, filled, garbled
from bench.synthetic_runs import make_run
from lab import cli, paths
from lab.atomic_files import write_json
from lab.compare.comparison import compare
from lab.paths import RunDir
from lab.runs import checkpoints, estimate_history, index, queue, record_reader, resume_settings
from lab.runs.metric_series import MetricSeries
from lab.runs.status import status
from lab.visible import visible

SHARE = 0.15
HOSTILE = "\x1b[2J\u202e[/bold][red]x\u2066\x9b\x07http://a.b \ud800"
JSON_FILES = ("spec.json", "estimate.json", "environment.json", "process.json", "heartbeat",
              "result.json", "labels.json", "queue.json", "pins.json", "resume.json",
              "first_batch.json", "artifact/receipt.json", 
              "checkpoints/step-4/state.json")  # fmt: skip
LINE_FILES = ("metrics.jsonl", "events.jsonl")
SECTIONS = ("method", "data", "train", "hardware", "requested", "name", "model")


@contextmanager
def prepared(folder: Path, chance: random.Random, count: int) -> Iterator[list[Case]]:
    good = make_run(0, 30)
    (good.checkpoints / "step-4").mkdir()
    write_json(good.checkpoints / "step-4" / "state.json", {"eval_loss": 2.5}, durable=False)
    good.artifact.mkdir()
    write_json(good.artifact / "receipt.json", {"method": "lora"}, durable=False)
    write_json(good.estimate, ESTIMATE, durable=False)
    template = folder / "template"
    os.rename(good.path, template)
    numbers = iter(range(1, 100_000))

    def case(name: str, files: dict[str, bytes | None], expected: str = "accepted") -> Case:
        """The good run with some files changed, or made something else (None)."""
        run = RunDir(paths.runs() / f"20260101-000000-lora-{next(numbers):04d}")

        def act() -> None:
            shutil.copytree(template, run.path)
            try:
                for name, content in files.items():
                    _put(run.path / name, content)
                _look(run)
            finally:
                shutil.rmtree(run.path)

        return Case("run directory", name, act, expected)

    def with_json(file: str, value: Any) -> Case:
        return case(f"{file} is {str(value)[:40]!r}", {file: json.dumps(value).encode()})

    spec = json.loads((template / "spec.json").read_text())
    result = json.loads((template / "result.json").read_text())
    lines = (template / "metrics.jsonl").read_bytes()
    written = [case("a good one", {})]
    for file in (*JSON_FILES, *LINE_FILES, "log.txt"):
        written.append(case(f"{file} is gone, a folder stands there", {file: None}))
        written += [
            case(f"{file}: {content[:20]!r}", {file: content})
            for content in (b"", b"{", b"\x00\xff", b"[" * 700 + b"]" * 700, b'{"a":' * 100_000)
        ]
    for section in SECTIONS:
        written += [with_json("spec.json", {**spec, section: odd}) for odd in ODD[::2]]
    for key in ("state", "message", "hint", "summary", "peak_bytes"):
        written += [with_json("result.json", {**result, key: odd}) for odd in ODD[::2]]
    for key in ("bytes", "at_peak", "pace", "peak_bytes", "device", "facts"):
        written += [with_json("estimate.json", {**ESTIMATE, key: odd}) for odd in ODD[::3]]
    for key in ("pid", "start", "host", "boot"):
        written += [
            case(f"process.json {key}", {"process.json": json.dumps({key: odd}).encode(),
                                         "result.json": b"{}"})
            for odd in ODD[::3]
        ]  # fmt: skip
    for key in ("phase", "done", "total", "eta_s", "unit"):
        written += [with_json("heartbeat", {key: odd}) for odd in ODD[::3]]
    for key in ("name", "tags", "notes", "archived"):
        written += [with_json("labels.json", {key: odd}) for odd in ODD[::3]]
    for key in ("priority", "order"):
        written += [
            case(f"queue.json {key}", {"queue.json": json.dumps({key: odd}).encode(),
                                       "result.json": None})
            for odd in ODD[::3]
        ]  # fmt: skip
    for key in ("step", "tokens", "seconds", "attempt", "train/loss", "memory/peak_bytes", "of"):
        record = json.loads(lines.splitlines()[0])
        written += [
            case(f"metrics {key}", {"metrics.jsonl": _line({**record, key: odd}) + lines})
            for odd in ODD[::2]
        ]
        base = {"kind": "eval", "step": 1, "eval/loss": 2.0}
        written += [
            case(f"evaluation {key}", {"metrics.jsonl": lines + _line({**base, key: odd})})
            for odd in ODD[::3]
        ]
    for kind in ("model", "data", "memory", "sample", "warning", "unfrozen", "phase"):
        keys = ("trainable", "parameters", "train_hash", "peaks", "weights", "message", "text")
        written += [
            case(
                f"event {kind}", {"events.jsonl": _line({"kind": kind, **dict.fromkeys(keys, odd)})}
            )
            for odd in ODD[::3]
        ]
    names = {"name": HOSTILE, "model": HOSTILE, "method": {"name": HOSTILE}}
    written.append(with_json("spec.json", spec | names))
    written.append(
        with_json("result.json", {"state": "failed", "message": HOSTILE, "hint": HOSTILE})
    )
    written.append(
        with_json("labels.json", {"notes": "a\u202eb", "tags": "x\u2066y", "name": "\x9b"})
    )
    written.append(case("log", {"log.txt": HOSTILE.encode(errors="surrogatepass") * 50}))

    def more(i: int) -> Case:
        file = chance.choice((*JSON_FILES, *LINE_FILES))
        source = template / file
        content = source.read_bytes() if source.is_file() else b'{"a": 1}'
        if i % 2 and file == "spec.json":
            return with_json(file, garbled(chance, spec))
        return case(f"damaged {file} {i}", {file: damaged(chance, content)})

    yield filled(chance, written, count, more)


ESTIMATE: dict[str, Any] = {
    "peak_bytes": 2 * 10**9, "device": "cpu", "has_margin": True, "source": "formula",
    "bytes": {"weights": 10**9, "gradients": 10**8, "optimizer": 10**8},
    "at_peak": {"weights": 10**9, "activations": 10**8},
    "pace": {"seconds": 12.0, "launch_s": 0.1, "rate": 1e9, "tokens_per_s": 5.0, "packing": "on"},
    "facts": {"examples": 5},
}  # fmt: skip


def _line(record: dict[str, Any]) -> bytes:
    return json.dumps(record).encode() + b"\n"


def _put(file: Path, content: bytes | None) -> None:
    if content is None:
        file.unlink(missing_ok=True)
        file.mkdir(parents=True)
    else:
        file.write_bytes(content)


def _look(run: RunDir) -> None:
    """Everything that looks at a run, as lists, Monitor and the command line do it."""
    run_status, entry = status(run), index.entry(run)
    json.dumps([run_status.to_json(), run_status.fraction, entry.name, entry.summary.to_json()])
    for kind in ("train", "eval", "device"):
        record_reader.metrics(run, kind)
    compare([run]).to_json()
    record_reader.events(run), record_reader.base_loss(run), index.disk(run)
    MetricSeries(run).refresh()
    checkpoints.table(run), checkpoints.pinned(run), resume_settings.changes_of(run)
    (
        estimate_history.estimate_error(run),
        estimate_history.measured_parts(run),
        estimate_history.error_history("cpu"),
    )
    queue.waiting_runs()
    verbs = ("show", "show --json", "logs", "runs", "compare", "checkpoints")
    # all that they read is looked at above; how it is printed, two at a time
    for verb in (verbs[int(run.id[-4:]) % 2], verbs[2 + int(run.id[-4:]) % 4]):
        name, *options = verb.split()
        arguments = [name, *([] if name == "runs" else [run.id]), *options]
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            code = cli.main(arguments)
        if code != 0:
            raise WronglyTaken(f"`{arguments[0]}` ends with {code}: {out.getvalue()[:200]}")
        if out.getvalue() != visible(out.getvalue()):
            raise WronglyTaken(f"`{arguments[0]}` prints what a terminal obeys")
