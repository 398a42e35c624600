"""start, runs, queue, show, logs, stop, resume, rename, delete."""

from __future__ import annotations

import argparse
import codecs
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lab import paths, spec
from lab.atomic_files import read_object
from lab.checked_run import damaged_keys
from lab.cli import follow, hub_data
from lab.cli.console import Output, console, loss, say, table, write
from lab.compare.comparison import figures_json, first_train_loss
from lab.compare.run_figures import run_figures
from lab.errors import LabError
from lab.formatting import count, short_id, size
from lab.preflight.client import planner
from lab.preflight.start import start_run
from lab.runs import (
    actions,
    checkpoints,
    elapsed,
    export_import,
    index,
    queue,
    record_reader,
    supervisor_start,
)
from lab.runs.resume_settings import spec_of
from lab.runs.status import status

ENDED_BADLY = ("failed", "crashed")


def add(verb: Any) -> None:
    sub = verb("start", start, "start a run from a spec; prints the run id")
    sub.add_argument("spec", metavar="SPEC.json")
    add_set(sub)
    sub.add_argument(
        "--ignore-memory", action="store_true", help="start even if it is predicted not to fit"
    )
    sub.add_argument("--wait", action="store_true", help="wait until it has ended")
    verb("runs", list_runs, "all runs, newest first")
    _add_run(verb("show", show, "one run: spec, state, last figures, result"))
    sub = verb("logs", logs, "print the worker's log")
    _add_run(sub)
    sub.add_argument(
        "-f", "--follow", action="store_true", help="follow the log until the run ends"
    )
    sub = verb("stop", stop, "stop at the next step and keep the result so far")
    _add_run(sub)
    sub.add_argument(
        "--kill", action="store_true", help="at once, losing what came after the last checkpoint"
    )
    sub.add_argument("--wait", action="store_true", help="wait until it has ended")
    sub = verb("resume", resume, "continue from the latest valid checkpoint, or make a run longer")
    _add_run(sub)
    add_set(sub)
    sub.add_argument(
        "--incomplete",
        action="store_true",
        help="continue even if the checkpoint lacks optimizer or RNG state",
    )
    sub.add_argument("--wait", action="store_true", help="wait until it has ended")
    sub = verb("queue", show_queue, "show the queue; pause, continue or reorder it")
    sub.add_argument("action", nargs="?", choices=["pause", "continue", "first"], default=None)
    sub.add_argument("run", nargs="?", metavar="RUN", help="the run to put first")
    sub.add_argument("--at-once", type=int, metavar="N", help="runs at the same time")
    sub.add_argument(
        "--after-failure", choices=["continue", "pause"], help="what to do after a failed run"
    )
    sub = verb("checkpoints", list_checkpoints, "a run's checkpoints; pin or delete one")
    _add_run(sub)
    for action in ("pin", "unpin", "delete"):
        sub.add_argument(f"--{action}", type=int, metavar="STEP")
    sub = verb("label", label, "tags, notes, and whether a run is archived")
    _add_run(sub)
    sub.add_argument("--tags", metavar="A,B")
    sub.add_argument("--notes", metavar="TEXT")
    sub.add_argument("--archive", action=argparse.BooleanOptionalAction, default=None)
    _add_run(verb("fixes", fixes, "changes that make a run fit, and the memory each saves"))
    sub = verb("export", export_run, "a finished run as one file")
    _add_run(sub)
    sub.add_argument("file", metavar="FILE.zip")
    sub.add_argument("--checkpoints", action="store_true", help="with its checkpoints")
    sub = verb("import", import_run, "import an exported run")
    sub.add_argument("file", metavar="FILE.zip")
    sub = verb("rename", rename, "rename a run")
    _add_run(sub)
    sub.add_argument("name", metavar="NAME")
    _add_run(verb("delete", delete, "remove a run with its checkpoints and result"))


def _add_run(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("run", metavar="RUN")


def add_set(sub: argparse.ArgumentParser, help: str = "change one field; may be repeated") -> None:
    metavar = "SECTION.KEY=VALUE"
    sub.add_argument(
        "--set", action="append", default=[], metavar=metavar, dest="settings", help=help
    )


def start(arguments: argparse.Namespace) -> Output:
    value = spec.override(spec.load(Path(arguments.spec)), arguments.settings)
    if arguments.ignore_memory:
        value = spec.override(value, ["hardware.ignore_memory=true"])
    hub_data.fetch_missing(value)
    run = start_run(value)
    if not arguments.json:
        say(run.id)
    state = _finish(run, quiet=arguments.json) if arguments.wait else "starting"
    return Output(
        {"id": run.id, "path": str(run.path), "state": status(run).state},
        lambda: None,  # its id was printed before it began
        1 if state in ENDED_BADLY else 0,
    )


def _finish(run: paths.RunDir, *, quiet: bool) -> str:
    """Follow the run to its end and say on stderr why it failed, if it did."""
    ended = follow.follow(run, run.id, quiet=quiet)
    if ended.message:
        say(f"{run.id} {ended.state}: {ended.message} {ended.hint}".strip(), error=True)
    return ended.state


def list_runs(arguments: argparse.Namespace) -> Output:
    runs = [
        {"id": entry.id, "name": entry.name, "method": entry.method, "model": entry.model}
        | entry.status.to_json()
        for entry in index.entries()
    ]

    def display() -> None:
        if not runs:
            console.print("No runs yet. 'python -m lab demo' makes the first two.")
            return
        rows = [
            [r["id"], r["name"], r["state"], f"{r['done']:g}/{r['total']:g}" if r["total"] else ""]
            for r in runs
        ]
        table("Runs", ["id", "name", "state", "progress"], rows)

    return Output({"runs": runs}, display)


def show(arguments: argparse.Namespace) -> Output:
    run = paths.run_dir(arguments.run)
    run_status = status(run)
    figures = run_figures(run)
    train, evals = record_reader.metrics(run, "train"), record_reader.metrics(run, "eval")
    data = {
        "id": run.id,
        "path": str(run.path),
        "spec": read_object(run.spec),
        "estimate": read_object(run.estimate),
        "environment": read_object(run.environment),
        "status": run_status.to_json(),
        "last": {"train": train[-1] if train else None, "eval": evals[-1] if evals else None},
        "figures": figures_json(figures),
        "disk": index.disk(run),
        "result": read_object(run.result),
    }

    def display() -> None:
        first, last = loss(first_train_loss(run)), loss(figures.train_loss)
        rows = [
            ["state", run_status.state + (f", {run_status.phase}" if run_status.is_active else "")],
            *follow.progress_row(run_status),
            ["name", figures.entry.name],
            ["model", short_id(figures.entry.model)],
            ["method", figures.entry.method],
            ["trainable", f"{count(figures.trainable)} of {count(figures.parameters)}"],
            ["steps", f"{figures.steps:,}"],
            ["tokens", f"{figures.tokens:,}"],
            ["time", elapsed.in_words(run)],
            ["train loss", f"{first} to {last}"],
            ["evaluation loss", f"base {loss(figures.base_loss)}, now {loss(figures.loss)}"],
            ["peak memory", size(figures.peak_bytes)],
            ["folder", str(run.path)],
        ]
        if run_status.message:
            rows.insert(1, ["why", f"{run_status.message} {run_status.hint}"])
        if damaged := damaged_keys(run):
            rows.append(["damaged", f"estimate.json: {', '.join(damaged)}"])
        table(run.id, ["", ""], rows)

    return Output(data, display)


def logs(arguments: argparse.Namespace) -> Output:
    run = paths.run_dir(arguments.run)
    data = {"id": run.id, "log": record_reader.tail(run.log, 1 << 20)}
    return Output(data, lambda: _print_log(run, follow=arguments.follow))


def _print_log(run: paths.RunDir, *, follow: bool) -> None:
    """The whole log, and what is added until the run has ended if `follow`."""
    shown = 0
    # a letter of several bytes may be cut in two by the end of what is written so far
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    while True:
        ended = status(run).has_ended
        try:
            with run.log.open("rb") as file:
                file.seek(shown)
                data = file.read()
        except OSError:
            data = b""
        shown += len(data)
        write(decoder.decode(data))
        if ended or not follow:
            return
        time.sleep(0.5)


def stop(arguments: argparse.Namespace) -> Output:
    run = paths.run_dir(arguments.run)
    actions.command(run, "kill" if arguments.kill else "stop")
    return _told(run, "stopping", arguments)


def resume(arguments: argparse.Namespace) -> Output:
    run = paths.run_dir(arguments.run)
    actions.resume(run, arguments.settings, incomplete=arguments.incomplete)
    return _told(run, "starting", arguments)


def _told(run: paths.RunDir, state: str, arguments: argparse.Namespace) -> Output:
    """The state of a run that was told something, or its last one with --wait."""
    if arguments.wait:
        state = _finish(run, quiet=arguments.json)
    answer = {"id": run.id, "state": state}
    return Output(answer, lambda: say(f"{run.id} {state}"), 1 if state in ENDED_BADLY else 0)


def show_queue(arguments: argparse.Namespace) -> Output:
    if arguments.action == "first":
        if not arguments.run:
            raise LabError("Which run?", "Write: queue first RUN")
        queue.reorder(paths.run_dir(arguments.run), first=True)
    elif arguments.action is not None:
        actions.set_paused(arguments.action == "pause")
    changes: dict[str, Any] = {}
    if arguments.at_once is not None:
        changes["at_once"] = arguments.at_once
    if arguments.after_failure is not None:
        changes["continue_after_failure"] = arguments.after_failure == "continue"
    rules = queue.change(**changes) if changes else queue.settings()
    supervisor_start.ensure_if_waiting()
    waiting = [
        {"id": entry.id, "name": entry.name, "why": entry.status.message}
        for entry in map(index.entry, queue.waiting_runs())
    ]

    def display() -> None:
        say(f"{'paused' if rules.paused else 'running'}, {rules.at_once} at once")
        if waiting:
            table("Waiting", ["id", "name", "why"], [[*entry.values()] for entry in waiting])

    active = [run.id for run in queue.active()]
    return Output({"settings": asdict(rules), "waiting": waiting, "active": active}, display)


def list_checkpoints(arguments: argparse.Namespace) -> Output:
    run = paths.run_dir(arguments.run)
    if arguments.pin is not None:
        checkpoints.pin(run, arguments.pin)
    if arguments.unpin is not None:
        checkpoints.pin(run, arguments.unpin, keep=False)
    if arguments.delete is not None:
        checkpoints.delete(run, arguments.delete)
    saved = checkpoints.table(run)

    def display() -> None:
        rows = [
            [
                f"{checkpoint.step:,}",
                size(checkpoint.bytes),
                loss(checkpoint.eval_loss),
                "pinned" * checkpoint.pinned,
            ]
            for checkpoint in saved
        ]
        table("Checkpoints", ["step", "size", "evaluation loss", ""], rows, right="rrr")

    return Output({"id": run.id, "checkpoints": [asdict(each) for each in saved]}, display)


def export_run(arguments: argparse.Namespace) -> Output:
    run = paths.run_dir(arguments.run)
    target = export_import.export(run, Path(arguments.file), checkpoints=arguments.checkpoints)
    answer = {"id": run.id, "file": str(target), "bytes": target.stat().st_size}
    return Output(answer, lambda: say(f"{target} {size(target.stat().st_size)}"))


def import_run(arguments: argparse.Namespace) -> Output:
    run = export_import.import_run(Path(arguments.file))
    return Output({"id": run.id, "path": str(run.path)}, lambda: say(run.id))


def label(arguments: argparse.Namespace) -> Output:
    run = paths.run_dir(arguments.run)
    labels = {"tags": arguments.tags, "notes": arguments.notes, "archived": arguments.archive}
    index.update_labels(run, **{key: value for key, value in labels.items() if value is not None})
    entry = index.entry(run)
    answer = {
        "id": run.id,
        "name": entry.name,
        "tags": list(entry.tags),
        "notes": entry.notes,
        "archived": entry.is_archived,
    }
    words = f"{run.id} {', '.join(entry.tags)} {entry.notes}".strip()
    return Output(answer, lambda: say(words))


def fixes(arguments: argparse.Namespace) -> Output:
    run = paths.run_dir(arguments.run)
    savings = planner.fixes(spec_of(run).to_json())

    def display() -> None:
        rows = [
            [
                saving.title,
                size(saving.peak_bytes),
                size(saving.saves_bytes),
                "same effective batch" if saving.keeps_effective_batch else "changes the training",
            ]
            for saving in savings
        ]
        table("Ways to reduce memory", ["", "estimated peak", "saves", ""], rows, right="lrrl")

    return Output({"id": run.id, "fixes": [asdict(saving) for saving in savings]}, display)


def rename(arguments: argparse.Namespace) -> Output:
    run = paths.run_dir(arguments.run)
    index.rename(run, arguments.name)
    answer = {"id": run.id, "name": arguments.name}
    return Output(answer, lambda: say(f"{run.id} {arguments.name}"))


def delete(arguments: argparse.Namespace) -> Output:
    run = paths.run_dir(arguments.run)
    notes = actions.delete(run)
    answer = {"id": run.id, "state": "deleted", "notes": notes}
    return Output(answer, lambda: say("\n".join([f"{run.id} deleted", *notes])))
