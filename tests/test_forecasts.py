"""Forecasts as JSON: what is stored comes back, and damage costs what is damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lab.atomic_files import write_json
from lab.checked_run import CheckedRun, CheckResult, damaged_keys, read_forecast, read_stats
from lab.errors import Problem, SpecError
from lab.forecasts import (
    Candidate,
    DatasetStats,
    Forecast,
    How,
    Parts,
    SettingsSearch,
    Speed,
    StepSettings,
    rows_in_words,
)
from lab.paths import RunDir
from lab.spec import RunSpec

# of runs from before `traced_layers` was written, by how each was obtained
STORED: dict[str, Any] = json.loads(
    (Path(__file__).parent / "stored_estimates.json").read_text(encoding="utf-8")
)


@pytest.mark.parametrize("how", list(How))
def test_an_estimate_of_an_older_lab_is_read_as_it_was_meant(how: How) -> None:
    stored = STORED[how.value]
    damaged: list[str] = []
    forecast = Forecast.from_json(stored, damaged)
    assert forecast is not None and forecast.memory.how is how and damaged == []
    again = forecast.to_json()
    layers = {How.REPEATED_LAYERS: "repeated", How.EVERY_LAYER: "every"}.get(how)
    assert again.pop("traced_layers") == layers
    new = {"trace_error": forecast.memory.trace_error, "launches": 0, "download": None}
    if stored["pace"] is not None:  # older labs predicted training and evaluating only
        of_no_training = {"loading_s": 0.0, "sampling_s": 0.0, "saving_s": 0.0, "probing_s": 0.0}
        new["pace"] = stored["pace"] | of_no_training | {"launching": 1.0, "beside": 1.0}
    accumulation = again["settings"].pop("gradient_accumulation_steps")
    assert accumulation == stored["settings"]["accumulation"], "It is read under its former name."
    again["settings"]["accumulation"] = accumulation
    unknown = [again["settings"].pop(name) for name in ("longest_row", "knows_rows")]
    assert unknown == [0, False], "Nobody wrote down which rows it was for."
    assert again.pop("has_margin") is stored["is_bound"], "And this one, too."
    again["is_bound"] = stored["is_bound"]
    assert again == {key: value for key, value in stored.items() if key != "facts"} | new
    assert Forecast.from_json(forecast.to_json()) == forecast, "And so it is read again."
    on_a_processor = Forecast.from_json(stored | {"is_bound": True})
    assert on_a_processor is not None and on_a_processor.memory.has_margin


def test_a_note_decides_nothing_once_the_layers_are_written() -> None:
    stored = STORED["repeated layers"] | {"traced_layers": "every"}
    assert How.from_json(stored) is How.EVERY_LAYER
    assert How.from_json(STORED["every layer"] | {"traced_layers": "repeated"}).is_exact


@pytest.mark.parametrize("stored", [{}, {"peak_bytes": 9e15}, STORED["outline"]])
def test_what_is_left_of_a_file_is_a_forecast(stored: dict[str, Any]) -> None:
    forecast = Forecast.from_json(stored | {"a later lab": 1})
    assert forecast is not None
    assert forecast.memory.peak_bytes == stored.get("peak_bytes", 0)
    assert isinstance(forecast.memory.peak_bytes, int)


@pytest.mark.parametrize("odd", [None, 5, -1.5, "x", [], [3], {"a": []}, True, 10**400])
def test_damage_costs_the_key_that_is_damaged_and_is_named(odd: Any) -> None:
    whole = STORED["outline"]
    for key in whole:
        damaged: list[str] = []
        forecast = Forecast.from_json(whole | {key: odd}, damaged)
        assert forecast is not None, key
        if key not in ("peak_bytes", "at_peak"):
            assert forecast.memory.peak_bytes == whole["peak_bytes"], f"{key} takes others along"
            assert forecast.memory.at_peak == Parts(**whole["at_peak"])
        assert set(damaged) <= {key}, "Only what is damaged is named, as the file calls it."
    assert Forecast.from_json(odd) is None or isinstance(odd, dict)
    named: list[str] = []
    Forecast.from_json(whole | {"bytes": "x", "pace": 3, "peak_bytes": "x"}, named)
    assert sorted(named) == ["bytes", "pace", "peak_bytes"]


def test_a_run_reads_back_what_its_check_handed_on(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    assert read_forecast(run) == Forecast() and read_stats(run) == DatasetStats()
    write_json(run.estimate, STORED["outline"] | {"pace": 1, "facts": {"examples": "many"}})
    assert damaged_keys(run) == ["pace", "examples"]
    forecast = Forecast.from_json(STORED["outline"])
    stats = DatasetStats.from_json(STORED["outline"]["facts"])
    assert forecast is not None and stats is not None and stats.tokens_per_row == 57.5
    checked = CheckedRun(RunSpec.from_json({"name": "one"}), {"name": "one"}, stats, forecast)
    write_json(run.estimate, checked.estimate_json())
    assert read_forecast(run) == forecast and read_stats(run) == stats
    result = CheckResult(run=checked)
    sent = json.loads(json.dumps(result.to_json()))
    assert CheckResult.from_json(sent) == result and sent["requested"] == {"name": "one"}


def test_a_check_with_problems_has_no_run() -> None:
    result = CheckResult((Problem("train.loss_implementation", "is wrong."),))
    assert CheckResult.from_json(result.to_json()) == result
    with pytest.raises(SpecError, match=r"train\.loss_implementation: is wrong"):
        result.checked()


def test_answers_about_devices_come_back() -> None:
    one = Candidate(4, 2, "on", "fused", "adamw", "off", 10**9, 123.4, How.OUTLINE, True)
    search = SettingsSearch((one,), 0.06, 0.35, False, "pays", None, 10**10)
    assert SettingsSearch.from_json(json.loads(json.dumps(search.to_json()))) == search
    assert search.to_json()["choices"][0]["changes"]["train.gradient_accumulation_steps"] == 2
    about = Forecast(speed=Speed(12.5, None), device_bytes=10**10)
    assert Forecast.from_json(about.to_json()) == about
    assert "device_bytes" not in Forecast().to_json(), "A run's own forecast is of no device."


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (None, ""),
        (StepSettings(max_length=512), ""),  # stored by an earlier version
        (StepSettings(longest_row=1, knows_rows=True), "longest row of the dataset: 1 token"),
        (
            StepSettings(longest_row=1311, knows_rows=True, packed=True),
            "longest packed row of the dataset: 1,311 tokens",
        ),
        (
            StepSettings(longest_row=512),
            "rows of max_length, 512 tokens: the dataset is not read",
        ),
    ],
)
def test_it_is_said_which_rows_a_figure_rests_on(settings: StepSettings | None, words: str) -> None:
    assert rows_in_words(settings) == words
