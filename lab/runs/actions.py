"""What a person does with runs: create_run_dir, submit, resume, stop, wait for, delete."""

from __future__ import annotations

import os
import shutil
import time

from lab import paths
from lab.atomic_files import remove_tree, sync_folder, write_json
from lab.checked_run import CheckedRun
from lab.errors import LabError
from lab.paths import RunDir
from lab.runs import (
    colours,
    hub_access,
    queue,
    resume_settings,
    supervisor_start,
    tracker_records,
)
from lab.runs.queue import QueueSettings
from lab.runs.status import RESUMABLE, status


def create_run_dir(checked: CheckedRun) -> RunDir:
    """The run directory of a checked run: complete when it appears under its name."""
    folder = paths.runs()
    try:
        paths.make_folder(folder)
        run_id = paths.new_run_id(checked.spec.method["name"])
        aside = folder / f".tmp-{run_id}"
        aside.mkdir()
        new_run = RunDir(aside)
        new_run.commands.mkdir()
        new_run.checkpoints.mkdir()
        stored = {"v": 1, **checked.spec.to_json(), "requested": checked.requested}
        write_json(new_run.spec, stored | {"created": time.time()})
        write_json(new_run.estimate, checked.estimate_json())
        write_json(new_run.labels, {"v": 1, "colour": colours.next_colour()})
        os.rename(aside, folder / run_id)
        sync_folder(folder)
    except OSError as error:
        raise LabError(
            f"The run directory cannot be written: {error}.", "Check LAB_HOME and the disk."
        ) from None
    return RunDir(folder / run_id)


def submit(run: RunDir, priority: int = 0) -> None:
    """Put a run at the end of the queue, and see to it that somebody starts it."""
    if hub_access.is_needed(run):
        supervisor_start.ensure()
        hub_access.hand_over(run)  # before anybody can start it
    write_json(run.queue, {"v": 1, "priority": priority, "order": time.time()})
    supervisor_start.ensure()


def set_paused(paused: bool = True) -> QueueSettings:
    """Whether the queue starts new runs."""
    new_settings = queue.change(paused=paused)
    if not paused:
        supervisor_start.ensure()
    return new_settings


def want_warm_worker() -> None:
    """Somebody sets up a run: have a worker ready for the next minutes."""
    if not queue.settings().spare:
        return
    paths.make_folder(queue.folder())
    write_json(queue.folder() / "wanted", {"v": 1, "time": time.time()}, durable=False)
    supervisor_start.ensure()


def resume(run: RunDir, settings: list[str] | None = None, *, incomplete: bool = False) -> None:
    """Go on in the same directory from the newest valid checkpoint. Raises LabError.

    A run that is done goes on if `settings` make it longer; its result so far is kept with the
    attempt. `settings` ("train.max_steps=200") hold from now on; `incomplete` allows a checkpoint
    that has lost its optimizer or random state.
    """
    now = status(run)
    if now.state == "queued" and not run.queue.exists() and not run.claim.exists():
        submit(run)  # it was made, and whoever made it ended before it was in the queue
        return
    if now.state == "done" and not settings:
        raise LabError(
            f"{run.id} is done: there is nothing left to train.",
            f"To make it longer: python -m lab resume {run.id} --set train.max_steps=N",
        )
    if now.state != "done" and now.state not in RESUMABLE:
        raise LabError(f"{run.id} is {now.state}.", "Only a run that has ended can be resumed.")
    changes = resume_settings.merged_changes(run, settings or [])
    resume_settings.check_base(run)
    if now.state == "done":
        resume_settings.lengthened(run, changes)
    attempt_dir = run.attempts / str(1 + sum(1 for _ in run.attempts.glob("*")))
    try:
        run.attempts.mkdir(exist_ok=True)
        attempt_dir.mkdir()
    except FileExistsError:
        raise LabError(f"{run.id} is already being resumed.", "Wait a moment.") from None
    if now.state == "done" and run.artifact.is_dir():  # a stop may come before it is as far again
        shutil.copytree(run.artifact, attempt_dir / "artifact", copy_function=_link_or_copy)
    ended = (run.process, run.killed, run.environment, run.heartbeat, run.result, run.claim)
    for file in (*ended, run.resume):
        if file.exists():
            os.replace(file, attempt_dir / file.name)
    if changes or incomplete:
        write_json(run.resume, {"v": 1, "settings": changes, "incomplete": incomplete})
    for file in run.commands.glob("*"):
        file.unlink()
    submit(run)


def _link_or_copy(source: str, target: str) -> None:
    """The same file under another name, which costs no room, where the file system can do that."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def command(run: RunDir, name: str) -> None:
    """Ask the worker for `stop`, `save` or `cancel`, or the supervisor to `kill` it.

    The worker answers at its next step, or sooner where it has nothing to save; the supervisor sees
    to it that it ends.
    """
    now = status(run)
    if now.state == "queued" and name != "save" and queue.withdraw(run):
        return
    if not now.is_active:
        raise LabError(f"{run.id} is {now.state}, there is nothing to {name}.")
    run.commands.mkdir(exist_ok=True)
    (run.commands / name).touch()
    if name != "save":
        supervisor_start.ensure()


def delete(run: RunDir) -> list[str]:
    """Remove a run that has ended, with its checkpoints and artifact, and with what other trackers
    hold of it under LAB_HOME; a sentence for each of them that may hold something still."""
    now = status(run)
    if now.state == "queued":
        queue.withdraw(run)
        now = status(run)
    if now.is_active:
        raise LabError(f"{run.id} is {now.state}.", f"Stop it first: python -m lab stop {run.id}")
    if queue.is_claimed(run) and supervisor_start.is_running():
        raise LabError(f"{run.id} is being started.", "Wait a moment, then stop it first.")
    trackers = tracker_records.trackers_of(run)
    aside = run.path.with_name(f".tmp-deleted-{run.id}")
    os.rename(run.path, aside)  # gone at once for everybody, however long removing takes
    remove_tree(aside)
    return tracker_records.remove(run.id, trackers)


def wait(run: RunDir, poll_s: float = 0.5, timeout_s: float | None = None) -> str:
    """Block until the run has ended; its state. Raises LabError after `timeout_s`."""
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    while True:
        now = status(run)
        if now.has_ended:
            return now.state
        if deadline is not None and time.monotonic() > deadline:
            raise LabError(f"{run.id} is still {now.state} after {timeout_s:.0f} s.")
        supervisor_start.ensure_if_waiting()
        time.sleep(poll_s)
