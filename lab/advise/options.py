"""What the lab forecasts for each approach: whether it fits, how long it takes, what it costs."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from lab import gpu_table
from lab.advise import prices, settings
from lab.advise.case import AdviceCase, card_of, device_of
from lab.advise.prices import Prices
from lab.advise.rules import Approach
from lab.errors import LabError
from lab.forecasts import Forecast
from lab.preflight.client import Abandoned, planner
from lab.recent import Recent

APPROACHES = (Approach.FULL, Approach.LORA, Approach.QLORA)
# any card of that kind, with more memory than there is
WITHOUT_BF16 = {
    "gpu": next(gpu.name for gpu in gpu_table.GPUS if not gpu.has_bf16),
    "memory_bytes": 10**14,
}
UNSIZED = {"cuda": {"kind": "cuda"}, "cpu": {"kind": "cpu"}}


@dataclass(frozen=True)
class Option:
    """One approach on the case's device. `need_bytes`: the least that it takes, one row a pass and
    every layer recomputed; `room_bytes`: what the device has. `refused`: why nothing is known."""

    approach: Approach
    spec: dict[str, Any]
    forecast: Forecast | None = None
    need_bytes: int | None = None
    room_bytes: int | None = None
    seconds: float | None = None
    energy_wh: float | None = None
    usd: float | None = None
    refused: str = ""

    @property
    def fits(self) -> bool | None:
        """None where it is not known."""
        if self.refused:
            return False
        return self.forecast.memory.fits if self.forecast else None


def estimate(spec: dict[str, Any], device: dict[str, Any]) -> Forecast:
    """The planner's outline of a step, kept for the next question. Raises LabError."""
    key = json.dumps([spec["model"], spec["method"], spec["data"], spec["train"], device])
    known = _forecasts.get(key)
    if known is None:
        known = planner.estimate(spec, device, shadow=False)
        _forecasts.put(key, known)
    return known


_forecasts: Recent[str, Forecast] = Recent(512)


def forecast_option(case: AdviceCase, approach: Approach, now: Prices | None = None) -> Option:
    """The approach with the most rows a pass that fit the device, and all it costs."""
    device = device_of(case)
    rows = settings.ROWS[approach.trains_everything]
    spec = settings.spec_of(case, approach, rows[-1])
    try:
        forecast = estimate(spec, device)
        if forecast.memory.fits is not False:
            for count in rows[:-1]:
                wider = settings.spec_of(case, approach, count)
                candidate = estimate(wider, device)
                if candidate.memory.fits is not False:
                    spec, forecast = wider, candidate
                    break
        need = least_need(case, approach)
    except Abandoned:
        raise
    except LabError as error:
        lines = str(error).splitlines()
        return Option(approach, spec, refused=lines[1].strip() if len(lines) > 1 else lines[0])
    seconds, energy = _time_and_energy(case, forecast)
    return Option(
        approach,
        spec,
        forecast,
        need,
        forecast.device_bytes,
        seconds,
        energy,
        _usd(case, seconds, energy, now or prices.current()),
    )


def least_need(case: AdviceCase, approach: Approach, *, has_bf16: bool | None = None) -> int:
    """Bytes of the smallest settings: one row a pass, every layer recomputed; in float32 where the
    card, or any card without bfloat16, is meant. Raises LabError."""
    spec = settings.spec_of(case, approach, 1)
    spec["train"] |= {"activation_checkpointing": "on"}
    card = card_of(case)
    if has_bf16 is None:
        has_bf16 = card is None or card.has_bf16
    device = UNSIZED[str(device_of(case).get("kind", "cuda"))] if has_bf16 else WITHOUT_BF16
    return estimate(spec, device).memory.needed_bytes


def _time_and_energy(case: AdviceCase, forecast: Forecast) -> tuple[float | None, float | None]:
    speed = forecast.speed
    if speed is None or not speed.tokens_per_s:
        return None, None
    tokens = case.tokens * settings.epochs_of(case)
    per_million = speed.wh_per_million_tokens
    return tokens / speed.tokens_per_s, per_million and per_million * tokens / 1e6


def _usd(
    case: AdviceCase, seconds: float | None, energy_wh: float | None, now: Prices
) -> float | None:
    """The rent of the card, or the electricity of this machine; None without a price."""
    if seconds is None:
        return None
    if case.is_here:
        return None if energy_wh is None else energy_wh / 1000 * now.electricity.usd
    card = card_of(case)
    per_hour = now.of_card(card) if card else None
    return None if per_hour is None else seconds / 3600 * per_hour.usd


def at_size(option: Option, case: AdviceCase, other: AdviceCase) -> Option:
    """The option for a case that differs in data or hardware only: nothing is asked again."""
    if option.forecast is None:
        return option
    room = option.room_bytes if other.is_here else _room_of(device_of(other))
    memory = dataclasses.replace(
        option.forecast.memory,
        fits=None if room is None or option.need_bytes is None else option.need_bytes <= room,
    )
    tokens = other.tokens * settings.epochs_of(other)
    share = tokens / (case.tokens * settings.epochs_of(case))
    before, after = card_of(case), card_of(other)
    watts = 1.0  # of the other card, in those of the first
    if before and after:
        share *= before.flops / after.flops
        watts = after.watts / before.watts
    seconds = option.seconds and option.seconds * share
    energy = option.energy_wh and option.energy_wh * share * watts
    return dataclasses.replace(
        option,
        forecast=dataclasses.replace(option.forecast, memory=memory),
        room_bytes=room,
        seconds=seconds,
        energy_wh=energy,
        usd=_usd(other, seconds, energy, prices.current()),
    )


def _room_of(device: dict[str, Any]) -> int | None:
    """What a run may take of a device as the planner takes it."""
    if "memory_bytes" in device:
        return int(device["memory_bytes"])
    return gpu_table.get(device["gpu"]).usable_bytes if "gpu" in device else None
