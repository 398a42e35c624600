"""What the finished runs of this machine say of its speed."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from lab import gpu_table, host, paths
from lab.checked_run import read_forecast
from lab.forecast.runtime_estimate import BOUND, OVERLAP_POWER
from lab.forecast.target_device import DEFAULT_MFU, TargetDevice
from lab.forecasts import RuntimeForecast
from lab.runs.result import read_result

MAX_RUNS = 200  # the newest, to learn a machine's pace from


@dataclass(frozen=True)
class FinishedRun:
    """What a run took, and what had been predicted of it, if that is known. `beside_s`: seconds of
    the worker that were not training."""

    seconds: float
    flops: float
    tokens: int
    packing: str = ""
    beside_s: float | None = None
    runtime: RuntimeForecast | None = None


def with_reached(device: TargetDevice) -> TargetDevice:
    """With what this machine's runs reach, if it is of their kind."""
    gpus = host.gpus()
    share, is_measured, runs = DEFAULT_MFU, False, list[FinishedRun]()
    if device.on_gpu and gpus:
        known = gpu_table.known(host.largest(gpus).name)
        runs = _finished("cuda")
        flops = known.flops if known else device.flops
        share, is_measured = reached(runs, flops)
    elif not device.on_gpu and not gpus:
        runs = _finished("cpu")
        share, is_measured = reached(runs, device.flops, on_gpu=False)
    if device.on_gpu:
        share = min(share, 1.0)  # of a peak from the maker's data sheet
    return replace(
        device,
        reached=share,
        is_measured=is_measured,
        launching=launching(runs),
        beside=beside(runs),
    )


def _finished(kind: str) -> list[FinishedRun]:
    """The finished runs of this machine on its `kind` of device."""
    runs = []
    for run in paths.all_runs()[:MAX_RUNS]:
        result = read_result(run)
        if result is None or result.state != "done":
            continue
        forecast, figures = read_forecast(run), result.summary
        if not figures.seconds or not figures.flops or not figures.tokens:
            continue
        if forecast.device == kind:
            runtime = forecast.runtime
            runs.append(
                FinishedRun(
                    figures.seconds,
                    figures.flops,
                    figures.tokens,
                    figures.packing,
                    None if result.seconds is None else result.seconds - figures.seconds,
                    runtime if runtime and runtime.is_complete else None,
                )
            )
    return runs


def reached(
    runs: Sequence[FinishedRun], flops: float, *, on_gpu: bool = True
) -> tuple[float, bool]:
    """(the share of `flops` that this machine's finished runs got, whether there are any).

    How far the predicted time was off says what to count on, since the factors of
    `runtime_estimate` are in it. The median of the runs of ten seconds and more.
    """
    rates = []
    for run in _long(runs):
        forecast = run.runtime
        if forecast is None or forecast.packing != (run.packing or forecast.packing):
            rates.append(run.flops / run.seconds)
            continue
        # the work alone: what is no work does not follow the rate
        launch = forecast.launch_s
        expected, measured = 1 / forecast.tokens_per_s, run.seconds / run.tokens
        if measured > 1.2 * launch:
            work = [_without(each, launch, on_gpu) for each in (expected, measured)]
            rates.append(forecast.rate * work[0] / work[1])
    return (statistics.median(rates) / flops, True) if rates else (DEFAULT_MFU, False)


def _without(together: float, launch: float, on_gpu: bool) -> float:
    """The work in what work and launches take together."""
    if not on_gpu:
        return together - launch
    return float(max(together**OVERLAP_POWER - launch**OVERLAP_POWER, 1e-60) ** (1 / OVERLAP_POWER))


def launching(runs: Sequence[FinishedRun]) -> float:
    """Times LAUNCH_S that a launch takes on this machine's GPU, by the runs that launches bind."""
    factors = [
        run.runtime.launching * (run.seconds / run.tokens) * run.runtime.tokens_per_s
        for run in _long(runs)
        if run.runtime is not None and run.runtime.launch_s * run.runtime.tokens_per_s > BOUND
    ]
    return statistics.median(factors) if factors else 1.0


def beside(runs: Sequence[FinishedRun]) -> float:
    """Times the predicted time beside training that this machine's runs took."""
    factors = [
        run.runtime.beside * run.beside_s / (run.runtime.whole_s - run.runtime.seconds)
        for run in _long(runs)
        if run.runtime is not None
        and run.beside_s is not None
        and run.beside_s > 0
        and run.runtime.whole_s > run.runtime.seconds
    ]
    return statistics.median(factors) if factors else 1.0


def _long(runs: Sequence[FinishedRun]) -> list[FinishedRun]:
    """Short runs say little of the speed."""
    return [run for run in runs if run.seconds > 10 and run.flops > 0]
