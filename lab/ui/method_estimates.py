"""The estimates of all methods for one view of the Memory page, asked in the background."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from lab import methods
from lab.errors import LabError
from lab.forecasts import Forecast
from lab.preflight.client import Abandoned, planner
from lab.recent import Recent
from lab.ui.waiting import BackgroundJob


@dataclasses.dataclass(frozen=True)
class MethodRow:
    """What is predicted for one method."""

    name: str
    title: str
    forecast: Forecast


class MethodEstimates(BackgroundJob):
    """The estimates of one view, asked one after another: outlines first, so that there is
    something to see soon, then the traced steps."""

    def __init__(self, settings: dict[str, Any], device: dict[str, Any]) -> None:
        super().__init__()
        self.settings, self.device = settings, device
        self.estimates: dict[str, Forecast] = {}
        self.refused: dict[str, str] = {}

    def ask(self) -> None:
        for shadow in (False, True):
            self._ask_all(shadow)

    def _ask_all(self, shadow: bool) -> None:
        # those first that the page compares in a sentence
        for method in sorted(methods.all_methods(), key=lambda method: not method.is_standard):
            if method.name in self.refused:
                continue
            try:
                self.estimates[method.name] = planner.estimate(
                    spec_of(self.settings, method), self.device, shadow=shadow
                )
            except Abandoned:
                raise
            except LabError as error:
                self.estimates.pop(method.name, None)
                self.refused[method.name] = _reason(error)

    def rows(self) -> list[MethodRow]:
        estimates = dict(self.estimates)
        return [
            MethodRow(method.name, method.title, estimates[method.name])
            for method in methods.all_methods()
            if method.name in estimates
        ]


_jobs: Recent[str, MethodEstimates] = Recent(64)


def job_for(settings: dict[str, Any], device: dict[str, Any]) -> MethodEstimates:
    """The estimates of this view, begun at the first look and shared by all who look."""
    return _jobs.get_or(
        json.dumps([settings, device], sort_keys=True),
        lambda: MethodEstimates(settings, device).start(),
        is_stale=lambda job: job.is_stale,
    )


def takes_rank(method: methods.Method) -> bool:
    """Whether the page's rank is the method's: where its defaults are those of LoRA. Others, such
    as VeRA's 256 or LoKr's 8, mean something else and keep their own."""
    usual = methods.get(methods.DEFAULT).config()
    config = method.config()
    return all(getattr(config, name, None) == getattr(usual, name) for name in ("rank", "alpha"))


def own_ranks() -> str:
    """The methods with a rank of their own, and what it is."""
    return ", ".join(
        f"{method.title} {method.config().rank}"
        for method in methods.all_methods()
        if hasattr(method.config(), "rank") and not takes_rank(method)
    )


def spec_of(settings: dict[str, Any], method: methods.Method) -> dict[str, Any]:
    """The spec of one method under the page's settings: its rank too, where that means LoRA's."""
    options: dict[str, Any] = {"name": method.name}
    if takes_rank(method):
        options |= {"rank": settings["rank"], "alpha": 2.0 * settings["rank"]}
    checkpointing = settings["checkpointing"] if method.can_checkpoint_activations else "off"
    return {
        "model": settings["model"],
        "method": options,
        "data": {"max_length": settings["length"]},
        "train": {
            "batch_size": settings["rows"],
            "activation_checkpointing": checkpointing,
            "loss_implementation": settings["loss"],
        },
    }


def _reason(error: LabError) -> str:
    lines = str(error).splitlines()
    return lines[1].strip() if len(lines) > 1 else str(error)
