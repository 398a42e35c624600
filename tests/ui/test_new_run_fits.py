"""What would fit, in the bar of New run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from lab.fit_answers import Saving
from lab.forecasts import Forecast
from lab.preflight.client import planner
from lab.ui import estimate_panel
from tests.ui.conftest import Page, words

GB = 10**9
HALF = Saving("Halve the batch size", {"train.batch_size": 1}, True, 3 * GB, 2 * GB)


class Job:
    """The estimate of a form, there at once: too large for a batch of more than one."""

    is_complete, error = True, None

    def __init__(self, spec: dict[str, Any]) -> None:
        peak = 5e9 if spec["train"]["batch_size"] > 1 else 3e9
        stored = {
            "peak_bytes": peak, "at_peak": {"weights": peak}, "device_bytes": 4e9,
            "fits": peak < 4e9, "source": "shadow", "settings": {}, "is_bound": False,
        }  # fmt: skip
        self.estimate = Forecast.from_json(stored)

    def look(self, position: str) -> None:
        pass


@pytest.fixture
def questions(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    specs: list[dict[str, Any]] = []
    monkeypatch.setattr(planner, "warm", lambda: None)
    monkeypatch.setattr(estimate_panel, "job_for", Job)
    monkeypatch.setattr(planner, "fixes", lambda spec: specs.append(spec) or [HALF])
    return specs


def test_a_change_that_fits_is_one_click_away(
    open_page: Page, questions: list[dict[str, Any]]
) -> None:
    at = open_page("new_run")
    assert at.number_input(key="new.train.batch_size").value == 2
    assert "needs 5.0 of 4.0 GB" in words(at) and questions == [], "asked when it is opened"
    at.session_state["new.fit"] = True
    at.run()
    assert "Halve the batch size · saves **2.00 GB** · peak 3.00 GB, :green[fits]" in words(at)
    assert len(questions) == 1
    at.run()
    assert len(questions) == 1, "not asked again for the same form"
    at.button(key="new.fit.0").click().run()
    assert not at.exception
    assert at.number_input(key="new.train.batch_size").value == 1
    assert "3.0 of 4.0 GB" in words(at) and "Halve the batch" not in words(at)


def test_both_sides_of_a_pair_are_changed_and_stay_two_methods(
    open_page: Page, questions: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    at = open_page("new_run", preset="full-lora")
    first, second = at.session_state["new.pair.a"], at.session_state["new.pair.b"]
    name = at.session_state["new.method.name"]
    changes = {"train.batch_size": 1, "method": {"name": "qlora"}}
    monkeypatch.setattr(planner, "fixes", lambda spec: [replace(HALF, changes=changes)])
    at.session_state["new.fit"] = True
    at.run()
    at.button(key="new.fit.0").click().run()
    assert not at.exception
    assert at.session_state["new.train.batch_size"] == 1
    assert (at.session_state["new.pair.a"], at.session_state["new.pair.b"]) == (first, second)
    assert at.session_state["new.method.name"] == name, "both are compared as they were"
