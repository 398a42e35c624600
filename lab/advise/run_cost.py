"""What a run has cost so far: the energy that its card measured, and the rent of such a card."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lab import gpu_table
from lab.advise import prices
from lab.advise.recommend import usd
from lab.atomic_files import read_object
from lab.formatting import duration
from lab.paths import RunDir
from lab.runs.elapsed import elapsed_s
from lab.runs.energy import energy_used
from lab.runs.metric_series import series_of

MAX_GAP_S = 5.0  # between two readings of the power, which come once a second


@dataclass(frozen=True)
class RunCost:
    """`energy_wh`: by the card's own readings, None without any; `rent_usd`: of the card for the
    whole time, None without a price."""

    seconds: float | None = None
    energy_wh: float | None = None
    energy_usd: float | None = None
    rent_usd: float | None = None
    card: str = ""

    def in_words(self) -> str:
        parts = [duration(self.seconds)]
        if self.energy_wh is None:
            parts.append("energy not measured: only NVIDIA GPUs report their power")
        else:
            parts.append(f"{self.energy_wh:,.1f} Wh measured")
            parts.append(f"{usd(self.energy_usd or 0.0)} of electricity")
        if self.rent_usd is not None:
            parts.append(f"{usd(self.rent_usd)} if the {self.card} were rented")
        return " · ".join(parts)


def cost_of(run: RunDir) -> RunCost:
    seconds = elapsed_s(run)
    energy = _energy_wh(series_of(run).device)
    now = prices.current()
    card = gpu_table.known(str((read_object(run.environment) or {}).get("device", "")))
    price = now.of_card(card) if card else None
    return RunCost(
        seconds,
        energy,
        None if energy is None else energy / 1000 * now.electricity.usd,
        seconds / 3600 * price.usd if price and seconds is not None else None,
        card.name if card else "",
    )


def _energy_wh(device: Any) -> float | None:
    """Of the whole time, evaluations and saving too; None without readings."""
    _, used = energy_used(device.get("time"), device.get("nvml/power_w"), MAX_GAP_S)
    return float(used[-1]) if len(used) else None
