"""What the finished runs of this machine say of its speed."""

from __future__ import annotations

import statistics
from dataclasses import replace
from typing import Any

from lab import gpu_table, host, paths
from lab.atomic_files import number, part, read_object
from lab.checked_run import read_forecast
from lab.forecast.runtime_estimate import BOUND, TOGETHER
from lab.forecast.target_device import REACHED, TargetDevice
from lab.forecasts import RuntimeForecast

Runs = list[tuple[dict[str, Any], RuntimeForecast | None]]
MOST_RUNS = 200  # the newest, to learn a machine's pace from


def with_reached(device: TargetDevice) -> TargetDevice:
    """With what this machine's runs reach, if it is of their kind."""
    gpus = host.gpus()
    share, is_measured, runs = REACHED, False, []
    if device.on_gpu and gpus:
        known = gpu_table.known(host.largest(gpus)["name"])
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


def _finished(kind: str) -> Runs:
    """(summary, predicted time) of the finished runs of this machine on its `kind` of device."""
    runs = []
    for run in paths.all_runs()[:MOST_RUNS]:
        result = read_object(run.result) or {}
        summary = part(result, "summary")
        if result.get("state") != "done" or not _has(summary, "seconds", "flops", "tokens"):
            continue
        forecast = read_forecast(run)
        begun, ended = number(result.get("started")), number(result.get("ended"))
        if begun and ended:
            summary = {**summary, "beside_s": ended - begun - summary["seconds"]}
        if forecast.device == kind:
            runtime = forecast.runtime
            runs.append((summary, runtime if runtime and runtime.is_complete else None))
    return runs


def _has(stored: dict[str, Any], *names: str) -> bool:
    """Whether these are numbers of a stored object, which may hold anything."""
    return all(number(stored.get(name)) is not None for name in names)


def reached(runs: Runs, flops: float, *, on_gpu: bool = True) -> tuple[float, bool]:
    """(the share of `flops` that this machine's finished runs got, whether there are any).

    `runs`: summaries with "flops", "tokens" and "seconds", each with the time that was predicted
    for it, if that is known. How far that was off says what to count on, since the factors here are
    in it. The median of the runs of ten seconds and more.
    """
    rates = []
    for summary, forecast in _of_length(runs):
        if forecast is None or forecast.packing != summary.get("packing", forecast.packing):
            rates.append(summary["flops"] / summary["seconds"])
            continue
        # the work alone: what is no work does not follow the rate
        launch = forecast.launch_s
        expected, took = 1 / forecast.tokens_per_s, summary["seconds"] / summary["tokens"]
        if took > 1.2 * launch:
            work = [_without(each, launch, on_gpu) for each in (expected, took)]
            rates.append(forecast.rate * work[0] / work[1])
    return (statistics.median(rates) / flops, True) if rates else (REACHED, False)


def _without(together: float, launch: float, on_gpu: bool) -> float:
    """The work in what work and launches take together."""
    if not on_gpu:
        return together - launch
    return float(max(together**TOGETHER - launch**TOGETHER, 1e-60) ** (1 / TOGETHER))


def launching(runs: Runs) -> float:
    """Times LAUNCH_S that a launch takes on this machine's GPU, by the runs that launches bind."""
    factors = [
        forecast.launching * (summary["seconds"] / summary["tokens"]) * forecast.tokens_per_s
        for summary, forecast in _of_length(runs)
        if forecast is not None and forecast.launch_s * forecast.tokens_per_s > BOUND
    ]
    return statistics.median(factors) if factors else 1.0


def beside(runs: Runs) -> float:
    """Times the predicted time beside training that this machine's runs took, which their
    summaries hold as "beside_s"."""
    factors = [
        forecast.beside * summary["beside_s"] / (forecast.whole_s - forecast.seconds)
        for summary, forecast in _of_length(runs)
        if forecast is not None
        and summary.get("beside_s", 0) > 0
        and forecast.whole_s > forecast.seconds
    ]
    return statistics.median(factors) if factors else 1.0


def _of_length(runs: Runs) -> Runs:
    return [
        (summary, forecast)
        for summary, forecast in runs
        if summary.get("seconds", 0) > 10 and summary.get("flops", 0) > 0
    ]
