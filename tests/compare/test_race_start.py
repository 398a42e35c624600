"""The ladder of a race, its forecast, and the file that names its runs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from lab import paths
from lab.checked_run import CheckedRun
from lab.compare import race, race_file, race_start, ready_races
from lab.compare.race import Budget
from lab.compare.race_start import RaceTerms
from lab.errors import LabError, SpecError
from lab.forecasts import DiskForecast, Forecast, MemoryForecast, RuntimeForecast
from lab.runs import actions, index, ladder
from lab.spec import RunSpec
from tests.answers import race_specs


def checked(name: str, rate: float = 1e-4, seconds: float = 100.0, **train: Any) -> CheckedRun:
    spec = RunSpec.from_json(
        {
            "name": name,
            "method": {"name": "lora"},
            "train": {"learning_rate": rate, "max_tokens": 1000, **train},
        }
    )
    runtime = RuntimeForecast(
        steps=10, tokens=1000, tokens_per_s=10.0, seconds=seconds, evaluating_s=20.0,
        loading_s=8.0, sampling_s=4.0,
    )  # fmt: skip
    disk = DiskForecast(artifact=10, checkpoint=30, total=100)
    forecast = Forecast(MemoryForecast(peak_bytes=5), disk, runtime)
    return CheckedRun(spec, {"train": {"learning_rate": "auto"}}, forecast=forecast)


def test_the_rates_of_a_ladder_are_around_the_default() -> None:
    assert race_start.rates(1e-4, 3) == [3.2e-5, 1e-4, 3.2e-4]
    assert race_start.rates(2e-4, 5) == [2e-5, 6.3e-5, 2e-4, 6.3e-4, 2e-3]
    assert race_start.rates(0.5, 3)[-1] == 1.0, "No rate is above 1."
    assert race_start.rates(1e-4, 0) == []


def test_probes_are_short_and_come_first() -> None:
    second = checked("b", 1e-2, forgetting_probe="on")
    planned = race_start.plan({"a": checked("a"), "b": second}, seeds=2, rungs=3)
    roles = [(each.role, each.contestant, each.seed) for each in planned]
    assert roles[:6] == [("probe", "a", 0)] * 3 + [("probe", "b", 0)] * 3
    assert roles[6:] == [
        (role, name, seed) for seed in (0, 1) for name in "ab" for role in ("tuned", "default")
    ]
    assert len(planned) == race_start.count_runs(2, 2, 3)
    probe = planned[4].spec.train
    assert (probe.max_tokens, probe.learning_rate) == (300, 1e-2)
    assert (probe.eval_steps, probe.save_steps, probe.sample_steps) == (0, 0, 0)
    assert probe.forgetting_probe == "off", "its figures would be read by nobody"
    assert planned[4].requested["train"]["learning_rate"] == 1e-2
    assert planned[-1].spec.train.max_tokens == 1000
    total = race_start.forecast(planned)
    # a probe: 0.3 of training and evaluating, and the load; the others 132 s each
    assert total.seconds == pytest.approx(6 * (30 + 6 + 8) + 8 * 132)
    assert total.disk_bytes == 6 * 10 + 8 * 100 and total.peak_bytes == 5
    epochs = race_start.plan({"a": checked("a", max_tokens=None, epochs=2.0)}, 1, 3)
    assert epochs[0].spec.train.epochs == pytest.approx(0.6)
    unknown = replace(checked("a"), forecast=Forecast())
    assert race_start.forecast(race_start.plan({"a": unknown}, 1, 0)).seconds is None


def test_a_forecast_is_measured_where_all_of_its_parts_are() -> None:
    rough = checked("a")
    assert rough.forecast.runtime is not None
    runtime = replace(rough.forecast.runtime, is_measured=True)
    measured = replace(rough, forecast=replace(rough.forecast, runtime=runtime))
    for runs, is_measured in (({"a": measured}, True), ({"a": measured, "b": rough}, False)):
        assert race_start.forecast(race_start.plan(runs, 1, 0)).is_measured is is_measured


def test_equal_steps_say_whom_they_favour() -> None:
    both = {"slow": checked("slow", seconds=150.0), "fast": checked("fast", seconds=100.0)}
    words = race_start.unfairness(Budget("steps", 10), both)
    assert "favour slow" in words and "1.5 times as long as fast" in words
    assert race_start.unfairness(Budget("flops", 1e12), both) == ""
    assert race_start.unfairness(Budget("steps", 10), {"a": checked("a"), "b": checked("b")}) == ""


def test_ladders_and_numbers_that_cannot_be() -> None:
    with pytest.raises(LabError, match="ladder of 4"):
        race_start.check_number(2, 1, 4)
    with pytest.raises(LabError, match="with a ladder of 5 are 207 runs"):
        race_start.check_number(9, 9, 5)


def test_a_race_names_its_runs_and_the_tuned_ones_their_probes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(actions, "submit", lambda run: None)
    planned = race_start.plan({"a": checked("a"), "b": checked("b", 1e-2)}, 1, 3)
    terms = RaceTerms(title="t", budget=Budget("tokens", 1000), ladder=3, ticket="abc")
    race_id, runs = race_start.start(planned, terms)
    stored = race_file.load(race_id)
    assert [each.run for each in stored.runs] == [run.id for run in runs]
    assert (stored.budget, stored.ladder, stored.seeds) == (Budget("tokens", 1000), 3, 1)
    tuned = [run for run, each in zip(runs, planned, strict=True) if each.role == "tuned"]
    listed = ladder.ladder_of(tuned[1])
    assert listed is not None and listed.default_rate == 1e-2
    assert listed.probes == {
        run.id: each.spec.train.learning_rate
        for run, each in zip(runs, planned, strict=True)
        if each.role == "probe" and each.contestant == "b"
    }
    assert "probe" in index.entry(runs[0]).tags and race_id in index.entry(runs[0]).tags
    compared = race_file.compared_runs(stored)
    assert {run.id for run in compared} == {run.id for run in race.runs_of(race_id)}
    assert len(compared) == 4, "Probes are not compared."
    assert race_start.started_by_ticket("abc") == race_id
    assert race_start.started_by_ticket("") is None is race_start.started_by_ticket("other")
    assert race_file.all_races() == [stored]
    with pytest.raises(LabError, match="is not a race"):
        race_file.load("race-../x")
    (paths.home() / "races" / f"{race_id}.json").write_text("{")
    with pytest.raises(LabError, match="There is no race"):
        race_file.load(race_id)


def test_contestants_of_one_method_differ_by_their_settings() -> None:
    value = {
        "name": "n",
        "data": {"packing": "off"},
        "contestants": [
            {"name": "r2", "method": "lora", "settings": {"method.rank": 2}},
            {"name": "mixed", "method": "lora", "settings": {"data.general_fraction": 0.1,
                                                             "train.learning_rate": 1e-3}},
        ],
    }  # fmt: skip
    specs, _ = race_specs(value, [], None)
    assert specs["r2"]["method"] == {"name": "lora", "rank": 2}
    assert specs["mixed"]["data"] == {"packing": "off", "general_fraction": 0.1}
    assert specs["mixed"]["train"] == {"learning_rate": 1e-3} and specs["r2"]["train"] == {}
    assert "contestants" not in specs["r2"]
    for listed, words in (
        (3, "list of objects"),
        ([{"method": "lora", "settings": {"model": "x"}}] * 2, "dotted keys"),
        ([{"method": "lora", "settings": {"method.name": "full"}}] * 2, "dotted keys"),
        ([{"method": "lora"}, {"method": "lora"}], "named twice"),
        ([{"method": "lora", "name": str(n)} for n in range(13)], "at most 12"),
    ):
        with pytest.raises(SpecError) as error:
            race.contestants({"contestants": listed}, [])
        assert words in str(error.value)


def test_the_questions_of_most_people_come_first() -> None:
    names = [ready.name for ready in ready_races.all_ready()]
    assert names[:3] == ["equal-work", "forgetting", "facts"] and names[3:] == sorted(names[3:])


def test_ready_races_are_races_and_their_tests_name_their_contestants() -> None:
    from lab.compare.claim_verdicts import FIGURES, RATE
    from lab.evals.score import TITLES

    assert len(ready_races.all_ready()) >= 4
    for ready in ready_races.all_ready():
        Budget.parse(ready.budget)
        race_start.check_number(len(ready.contestants), ready.seeds, ready.ladder)
        specs, _ = race.contestant_specs(dict(ready.spec), list(ready.contestants), None)
        for spec in specs.values():
            RunSpec.from_json(spec)
        names = {each.name for each in ready.contestants}
        names |= {f"{name}, best of {ready.ladder}" for name in names}
        names |= {name.partition(" at ")[0] for name in names}
        for test in ready.tests:
            assert {test.of, *test.less} <= names, f"{ready.name}: {test}"
            assert test.than in names | {""}, f"{ready.name}: {test}"
            assert len(test.less) in (0, 2)
            assert test.figure in {*FIGURES, *TITLES, RATE} and test.sentence
            assert test.expect in ("lower", "higher") and len(test.ratio) in (0, 2)
    with pytest.raises(LabError, match="no ready race"):
        ready_races.get("nothing")
