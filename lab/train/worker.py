"""One attempt at a run, from the spec to the result file."""

from __future__ import annotations

import dataclasses
import time
import traceback

from lab import devices, formatting, process
from lab.checked_run import read_forecast
from lab.errors import Cancelled, LabError
from lab.library_imports import import_libraries
from lab.models.weights import is_out_of_memory
from lab.paths import RunDir
from lab.runs import checkpoints, resume_settings
from lab.runs.result import OutOfMemory, Result, TrainingSummary, write_result
from lab.train.commands import BEFORE_TRAINING, NEVER, Commands
from lab.train.telemetry import Telemetry, device_stats_reader
from lab.train.trackers import Trackers


def work(run: RunDir) -> int:
    """Run one attempt to its end; the exit code. Every way out but a kill writes result.json."""
    commands = Commands(run)
    with commands.heard():  # from the start: a SIGTERM while torch is imported is a stop, too
        return _work(run, commands)


def _work(run: RunDir, commands: Commands) -> int:
    process.await_registration(run)
    attempt_number = 1 + sum(1 for _ in run.attempts.glob("*")) if run.attempts.is_dir() else 1
    telemetry = Telemetry(run, attempt_number)
    started = time.time()
    summary = TrainingSummary()
    state, message, hint = "failed", "", ""
    memory: OutOfMemory | None = None
    try:
        spec = resume_settings.spec_of(run)
        commands.interrupting = BEFORE_TRAINING
        telemetry.each_second = commands.interrupt
        telemetry.start(device_stats_reader(run, uses_gpu=False))
        telemetry.enter_phase("loading")
        # importing torch takes seconds; the heartbeat already runs
        import_libraries(with_peft=False)  # a full run needs none
        from lab.train.attempt import Attempt

        devices.assert_one()
        attempt = Attempt(run, spec, telemetry, commands)
        trackers = Trackers(run.id, spec, telemetry.warn)
        telemetry.on_metric = trackers.put
        try:
            state = attempt.run_training()
        finally:
            summary = attempt.summary
            trackers.finish()
    except Cancelled as ended:
        commands.interrupting = NEVER
        state = "cancelled" if ended.command == "cancel" else "stopped"
        if ended.kept_download:
            message = f"{state.capitalize()} while downloading: {ended.kept_download} are kept."
            hint = "Resume it; the download continues from there."
        elif state == "stopped":
            message, hint = nothing_to_save(run)
    except LabError as error:
        message, hint = error.message, error.hint
        print(f"error: {error}", flush=True)
    except Exception as error:
        traceback.print_exc()
        message, hint = f"{type(error).__name__}: {error}", hint_for(error)
        if is_out_of_memory(error):
            memory = out_of_memory(run, telemetry.phase)
            message = memory_in_words(memory)
    finally:
        telemetry.enter_phase("ended")
        telemetry.stop()
    result = Result(state, message, hint, attempt_number, started, time.time(), summary, memory)
    write_result(run, result)
    return 1 if state == "failed" else 0


def nothing_to_save(run: RunDir) -> tuple[str, str]:
    """(message, hint) of a stop before the first step of an attempt."""
    steps = [checkpoints.step_of(path) for path in checkpoints.listing(run.checkpoints)]
    if not steps:
        return "Stopped before the first step: there was nothing to save.", "Resume it to begin."
    message = f"Stopped before its next step: there was nothing to save since step {steps[-1]}."
    return message, f"Resume it; it continues from step {steps[-1]}."


def out_of_memory(run: RunDir, phase: str) -> OutOfMemory:
    """With the parts of the prediction that this run was admitted with, the largest first."""
    predicted = read_forecast(run).memory
    sizes = dataclasses.asdict(predicted.largest) if predicted.largest else {}
    ranked = sorted(
        ((name, size) for name, size in sizes.items() if size), key=lambda part: -part[1]
    )
    return OutOfMemory(phase, predicted.peak_bytes or None, dict(ranked))


def memory_in_words(memory: OutOfMemory) -> str:
    """The phase, and what takes most of the memory."""
    most = [f"{name} {formatting.size(size)}" for name, size in list(memory.parts.items())[:3]]
    largest = ", ".join(most)
    return f"Out of memory during {memory.phase}. Largest parts (estimated): {largest}."


def hint_for(error: Exception) -> str:
    """What to do about an error of a library."""
    if is_out_of_memory(error):
        return "See the suggestions below, or run 'python -m lab fixes RUN'."
    if isinstance(error, OSError) and error.errno == 28:
        return "The disk is full: delete runs or checkpoints, then resume."
    return "See the log for the full traceback."
