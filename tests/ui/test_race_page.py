"""The Race page: ready races, the form with what each contestant takes, a race to its end."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from lab import formatting, paths
from lab.atomic_files import write_json
from lab.checked_run import CheckedRun
from lab.compare import evidence, race_file, race_start, ready_races
from lab.compare.finishers import finishers
from lab.compare.race import Budget, RaceContestant, contestant_specs
from lab.compare.race_start import RaceTerms
from lab.compare.ready_races import ReadyRace
from lab.errors import LabError
from lab.forecasts import DiskForecast, Forecast, MemoryForecast, RuntimeForecast
from lab.runs import queue
from lab.runs.status import Status
from lab.spec import RunSpec
from lab.ui import race_forecast, race_form, race_view
from tests.ui.conftest import Page, words
from tests.ui.screen import Screen


def quick_check(spec: dict[str, Any]) -> CheckedRun:
    """What a check finds, without a model: every run takes 132 s, 5 GB and 100 MB."""
    parsed = RunSpec.from_json(spec)
    if parsed.train.learning_rate == "auto":
        parsed = replace(parsed, train=replace(parsed.train, learning_rate=1e-4))
    runtime = RuntimeForecast(
        steps=5, tokens=99, seconds=100.0, evaluating_s=20.0, loading_s=8.0, sampling_s=4.0
    )
    memory = MemoryForecast(peak_bytes=5_000_000_000)
    disk = DiskForecast(artifact=10_000_000, total=100_000_000)
    return CheckedRun(parsed, spec, forecast=Forecast(memory, disk, runtime))


@pytest.fixture(autouse=True)
def checked_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(race_forecast.planner, "check", quick_check)
    monkeypatch.setattr("lab.ui.submit.warm", lambda: None)
    monkeypatch.setattr("lab.runs.supervisor_start.ensure", lambda: None)


def finish_checks(at: AppTest) -> AppTest:
    """As the page does by itself, once a second."""
    for job in race_forecast._checks._entries.values():
        job.thread.join(60)
    return at.run()


def tiny_race(make_spec: Callable[..., dict[str, Any]], **terms: Any) -> race_file.Race:
    """A race of two methods on the tiny model, in the queue."""
    from tests.answers import checked

    value = make_spec("lora", train={"eval_steps": 0, "save_steps": 0})
    racing = [RaceContestant("LoRA", "lora", {}), RaceContestant("Full <b>", "full", {})]
    specs, _ = contestant_specs(value, racing, Budget("steps", 4))
    planned = race_start.plan({name: checked(spec) for name, spec in specs.items()}, 1, 0)
    titled = {"title": "Tiny *race*", "budget": Budget("steps", 4), "spec": value, **terms}
    race_id, _ = race_start.start(planned, RaceTerms(contestants=tuple(racing), **titled))
    return race_file.load(race_id)


def test_without_a_choice_three_ready_races_say_what_they_ask(open_page: Page) -> None:
    at = open_page("race")
    for ready in ready_races.all_ready()[:3]:
        assert ready.question in words(at).replace("\\", "")
    known = {each.id for each in evidence.all_evidence()}
    assert ready_races.all_ready()[0].name in known and "measured with" in words(at)
    at.button(key=f"race.card.{ready_races.all_ready()[0].name}").click().run()
    assert not at.exception
    assert at.session_state[race_form.READY] == ready_races.all_ready()[0].name


def test_a_race_of_ones_own_from_the_form_to_the_queue(
    open_page: Page, make_spec: Callable[..., dict[str, Any]], tiny_model: Path, chats: Path
) -> None:
    filled = {
        race_form.ROWS: [0, 1],
        race_form.SPEC: make_spec("lora", train={"eval_steps": 0}),
        race_form.BASE: str(tiny_model),
        race_form.DATASET: str(chats),
        race_form.UNIT: "steps",
        race_form.SEEDS: 2,
        race_form.RATES: 0,
        **{f"race.budget.{unit}": amount for unit, amount in race_form.AMOUNTS.items()},
        "race.budget.steps": 5,
        **{f"race.{row}.method": name for row, name in enumerate(("lora", "full"))},
        **{f"race.{row}.rate": "auto" for row in (0, 1)},
    }
    at = open_page("race", session=filled)
    finish_checks(at)
    # four runs of 132 s, 5 GB and 100 MB
    for text in ("4 runs", "8 min 48 s", "5.0 GB at most", "400.00 MB of disk"):
        assert text in words(at), text
    assert "2 min 12 s (1 min 40 s of training)" in words(at), (
        "Why a run takes more than its budget."
    )
    assert at.session_state["race.0.method"] == "lora"
    at.segmented_control(key="race.rates").set_value(3).run()
    finish_checks(at)
    assert "14 runs" in words(at), "Three probes and two seeds of two rates, twice."
    at.button(key="race.start").click().run()
    finish_checks(at)
    (race,) = race_file.all_races()
    assert race.seeds == 2 and race.ladder == 3 and race.started_by == "page"
    assert race.budget == Budget("steps", 5)
    assert [each.role for each in race.runs].count("probe") == 6
    assert len(queue.waiting_runs()) == len(race.runs) == 14
    probe = paths.run_dir(race.runs[0].run)
    assert RunSpec.of_run(probe).train.max_steps == 2, "30 % of five steps."


def test_what_is_wrong_is_said_in_the_bar_and_starts_nothing(open_page: Page) -> None:
    at = open_page("race")
    at.button(key="race.own").click().run()
    at.session_state["race.1.method"] = "lora"
    at.session_state["race.1.rank"] = at.session_state["race.0.rank"]
    at.run()
    assert "same settings" in words(at)
    assert at.button(key="race.start").disabled
    at.session_state["race.1.rate"] = "fast"
    at.run()
    finish_checks(at)
    assert "learning_rate" in words(at) or "number" in words(at), words(at)
    assert at.button(key="race.start").disabled, "One contestant alone is no race."


def test_a_race_that_runs_and_ends(
    open_page: Page,
    make_spec: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from tests.conftest import attempt_here

    race = tiny_race(make_spec)
    at = open_page("race", race=race.id)
    assert "Tiny \\*race\\*" in words(at), "Names are shown as they are."
    cells = race_file.cells(race)
    assert race_view.fraction(cells) == 0 and "0 of 2 done" in race_view.progress_words(race, cells)
    table = race_view.table(race, cells)
    assert table["Seed 0"] == [":gray[waiting]"] * 2 and "Full \\<b\\>" in table["Contestant"][1]
    for run in queue.waiting_runs():
        assert queue.claim(run)
        attempt_here(run)
    at = open_page("race", race=race.id)
    assert "lowest evaluation loss" in words(at) or "No difference shown" in words(at)
    (stored,) = [each for each in evidence.all_evidence() if each.id == race.id]
    assert [each.name for each in stored.contestants] == ["LoRA", "Full <b>"]
    assert all(each.mean("loss") for each in stored.contestants)
    assert stored.budget == "4 steps" and stored.code == race.code
    assert any(button.key == "race.compare" for button in at.button)
    report = race_view.compare_export.html_report([each.contestant for each in finishers(race)])
    assert "tiny lora · LoRA" in report and "https://" not in report.partition("<script")[0]
    at.button(key="race.repeat").click().run()
    assert not at.exception and at.session_state[race_form.ROWS] == [0, 1]
    assert at.button(key="race.remove.1").help == "Remove Full \\<b\\>", "a tooltip is Markdown"


def test_the_rates_of_a_ladder_stand_beside_their_losses(
    make_spec: Callable[..., dict[str, Any]],
) -> None:
    from tests.answers import checked

    specs = {"LoRA": make_spec("lora"), "Full": make_spec("full")}
    planned = race_start.plan({name: checked(spec) for name, spec in specs.items()}, 1, 3)
    race_id, runs = race_start.start(planned, RaceTerms(ladder=3))
    for run, loss in zip(runs[:2], (2.5, 2.25), strict=True):
        write_json(run.result, {"state": "done"})
        run.metrics.write_text(json.dumps({"kind": "eval", "step": 1, "eval/loss": loss}) + "\n")
    race = race_file.load(race_id)
    table = race_view.table(race, race_file.cells(race))
    assert table["Contestant"][0].endswith("LoRA, best rate")
    assert table["Learning rates tried"] == [
        "3.2e-4 2.50 · 1e-3 **2.25** · 3.2e-3 :gray[waiting]", "–",
        "3.2e-4 :gray[waiting] · 1e-3 :gray[waiting] · 3.2e-3 :gray[waiting]", "–",
    ]  # fmt: skip


def test_what_waits_can_be_taken_out(make_spec: Callable[..., dict[str, Any]]) -> None:
    race = tiny_race(make_spec)
    race_view.stop_waiting(race_file.cells(race))
    now = race_file.cells(race)
    assert {cell.status.state for cell in now} == {"cancelled"} and race_file.has_ended(now)
    assert queue.waiting_runs() == []


def test_the_address_may_name_a_ready_race(
    open_page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready = ready_races.get("rank")
    at = open_page("race", ready="rank")
    assert "ready" not in at.query_params
    assert len(at.session_state[race_form.ROWS]) == len(ready.contestants)
    assert at.session_state["race.2.rank"] == 64
    assert at.session_state["race.budget.tokens"] == 8000
    assert "alpha = 128" in words(at).replace("\\", ""), "What else it sets is said."
    at = open_page("race", ready="layers")
    extra = "alpha = 106 · target_modules = q_proj, k_proj, v_proj, o_proj"
    assert extra in words(at).replace("\\", ""), "and as people write it"
    at = open_page("race", ready="equal-work")
    amount = at.number_input(key="race.budget.flops")
    assert (amount.label, amount.value) == ("TFLOPs per run", 4.0)
    session = {race_form.UNIT: "flops", "race.budget.flops": amount.value}
    with monkeypatch.context() as patch:
        patch.setattr(race_form, "st", SimpleNamespace(session_state=session))
        assert race_form.budget() == Budget("flops", 4e12)
    at = open_page("race", ready="nothing")
    assert "no ready race" in words(at)


@pytest.mark.parametrize("ready", ready_races.all_ready(), ids=lambda ready: ready.name)
def test_a_row_of_a_ready_race_shows_the_rate_that_its_run_will_have(
    ready: ReadyRace, monkeypatch: pytest.MonkeyPatch
) -> None:
    session: dict[str, Any] = {}
    monkeypatch.setattr(race_form, "st", SimpleNamespace(session_state=session))
    race_form.fill_ready(ready.name)
    ways = ((ready.spec, ready.contestants), (session[race_form.SPEC], race_form.contestants()))
    by_hand, from_form = (
        {
            name: RunSpec.from_json(spec).train.learning_rate
            for name, spec in contestant_specs(dict(shared), list(racing), None)[0].items()
        }
        for shared, racing in ways
    )
    assert from_form == by_hand
    assert "learning_rate" not in session[race_form.SPEC]["train"], "auto is the method's default"
    for row, rate in enumerate(by_hand.values()):
        shown = rate if isinstance(rate, str) else formatting.rate(float(rate))
        assert session[f"race.{row}.rate"] == shown


def test_a_ready_race_is_that_race_as_long_as_its_contestants_are_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    session: dict[str, Any] = {}
    monkeypatch.setattr(race_form, "st", SimpleNamespace(session_state=session))
    race_form.fill_ready("rank")
    terms = race_form.terms(["out"], ["note"], "ticket")
    assert (terms.ready, terms.left_out, terms.ticket) == ("rank", ("out",), "ticket")
    assert terms.tests == ready_races.get("rank").tests
    race_form.remove_row(session[race_form.ROWS][-1])
    changed = race_form.terms([], [], "ticket")
    assert changed.ready == "", "its evidence would be taken for that of the ready race"


def test_each_contestant_has_a_name_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    session: dict[str, Any] = {}
    monkeypatch.setattr(race_form, "st", SimpleNamespace(session_state=session))
    racing = [
        RaceContestant("", "lora", {"method.rank": rank, "train.learning_rate": rate})
        for rank, rate in ((8, "auto"), (16, "auto"), (16, 3e-4), (16, 3e-4))
    ]
    race_form.fill({}, racing, Budget("seconds", 180.0), 2, 3)
    assert [each.name for each in race_form.contestants()] == [
        "LoRA r8", "LoRA r16", "LoRA r16 at 3e-4", "LoRA r16 at 3e-4 (2)",
    ]  # fmt: skip
    settings = [each.settings for each in race_form.contestants()]
    assert settings[0] == {"method.rank": 8}, "auto is the default of the method"
    assert settings[2] == {"method.rank": 16, "train.learning_rate": 3e-4}
    assert session["race.budget.seconds"] == 3.0, "the field counts minutes"
    assert race_form.budget() == Budget("seconds", 180.0)
    race_form.remove_row(1)
    race_form.add_row()
    assert race_form.contestants()[-1].method == "full", "one that does not race yet"


@pytest.mark.parametrize(
    ("status", "more", "says"),
    [
        (Status("done"), {"loss": 2.414}, ":material/check: 2.41"),
        (Status("done"), {}, ":material/check: done"),
        (Status("cancelled"), {"is_needless": True}, ":gray[= default]"),
        (Status("queued"), {}, ":gray[waiting]"),
        (Status("training", done=36.0, total=60.0), {}, ":material/play_circle: 36 of 60"),
        (Status("starting", phase="loading"), {}, ":material/play_circle: loading"),
        (Status("failed"), {"loss": 2.0}, ":material/error: failed"),
    ],
)
def test_a_cell_says_how_far_its_run_is(status: Status, more: dict[str, Any], says: str) -> None:
    cell = race_file.RunCell(race_file.RaceRun("x", "LoRA"), status, **more)
    assert race_view.cell_words(cell) == says


def test_the_report_of_a_race_has_all_who_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen()
    monkeypatch.setattr(race_view, "st", screen)
    monkeypatch.setattr(race_view.compare_export, "html_report", list)
    racing: list[Any] = [SimpleNamespace(contestant=name) for name in ("LoRA", "Full", "IA3")]
    race_view._actions(race_file.Race(id="race-1"), racing)
    ((_, report, name, *_),) = [a for kind, a, _ in screen.calls if kind == "download_button"]
    assert (report(), name) == (["LoRA", "Full", "IA3"], "race-1.html")


class BottomScreen(Screen):
    bottom = property(lambda self: self)


@pytest.mark.parametrize(
    ("states", "is_ready", "says"),
    [
        (("fits", "checking", "fits"), False, "checking 1 of 3"),
        (("fits", "refused", "fits"), True, "1 left out, its row says why"),
        (("fits", "refused", "refused"), False, "Fewer than two contestants can start"),
        (("fits", "fits", "fits"), True, "3 runs"),
    ],
)
def test_a_race_starts_once_each_check_has_ended_and_two_can_race(
    make_spec: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch,
    states: tuple[str, ...], is_ready: bool, says: str,
) -> None:  # fmt: skip
    screen = BottomScreen()
    screen.session_state |= {race_form.SEEDS: 1, race_form.RATES: 0}
    monkeypatch.setattr(race_forecast, "st", screen)
    monkeypatch.setattr(race_form, "st", screen)
    monkeypatch.setattr(race_form, "problems", list)
    monkeypatch.setattr(race_form, "budget", lambda: Budget("steps", 4))
    checks = {}
    for name, state in zip(("lora", "full", "ia3"), states, strict=True):
        checks[name] = check = race_forecast.ContestantCheck(make_spec(name))
        check.is_complete = state != "checking"
        check.checked = quick_check(check.spec) if state == "fits" else None
    race_forecast.bar(checks)
    (button,) = screen.named("button")
    assert button["key"] == "race.start" and button["disabled"] != is_ready
    assert says in screen.texts("markdown")[0]


def test_only_contestants_that_can_start_are_started(
    make_spec: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    screen, started = Screen(), {}
    names = ("LoRA", "Full", "IA3")
    specs = {name: make_spec(name.lower()) for name in names}
    checks = {name: race_forecast.ContestantCheck(spec) for name, spec in specs.items()}
    for name, check in checks.items():
        check.is_complete = True
        if name == "Full":
            check.error = LabError("It does not fit.")
        else:
            check.checked = quick_check(specs[name])
    screen.session_state |= {race_form.SEEDS: 1, race_form.RATES: 0}
    monkeypatch.setattr(race_forecast, "st", screen)
    monkeypatch.setattr(race_form, "st", screen)
    monkeypatch.setattr(race_form, "specs", lambda: (specs, ["a note"]))
    monkeypatch.setattr(race_form, "terms", lambda *rest: rest)
    monkeypatch.setattr(race_forecast.submit, "ticket", lambda: "ticket")
    monkeypatch.setattr(race_forecast.submit, "renew", lambda: "another")
    monkeypatch.setattr(race_forecast, "wait", lambda label, check: check())
    monkeypatch.setattr(race_start, "check", lambda specs, seeds, rungs: list(specs))
    monkeypatch.setattr(
        race_start, "start",
        lambda planned, terms: started.update(planned=planned, terms=terms) or ("race-1", []),
    )  # fmt: skip
    monkeypatch.setattr(race_forecast.links, "switch", lambda name, query: started.update(query))
    race_forecast._start(checks)
    assert started == {
        "planned": ["LoRA", "IA3"], "race": "race-1",
        "terms": (["Full is left out: It does not fit."], ["a note"], "ticket"),
    }  # fmt: skip


def test_a_race_that_there_is_not(open_page: Page) -> None:
    at = open_page("race", race="race-20200101-000000-abcd")
    assert "no race" in words(at)


def test_the_form_is_still_filled_after_another_page(open_page: Page) -> None:
    at = open_page("race", ready="rank")
    at.text_input(key="race.1.rate").set_value("5e-4").run()
    at.number_input(key="race.seeds").set_value(4).run()
    at.switch_page("../../pages/runs.py").run()
    at.switch_page("../../pages/race.py").run()
    assert not at.exception
    assert at.text_input(key="race.1.rate").value == "5e-4"
    assert at.number_input(key="race.seeds").value == 4
    assert at.session_state["race.budget.tokens"] == 8000


@pytest.mark.parametrize(("is_measured", "about"), [(True, ""), (False, "about ")])
def test_a_time_that_no_run_has_measured_is_about_right(is_measured: bool, about: str) -> None:
    forecast = race_start.RaceForecast(9, 4320.0, 3_200_000_000, 2_500_000_000, is_measured)
    assert race_forecast.in_words(forecast) == (
        f"**9 runs** · :material/timer: {about}1 h 12 min · :material/memory_alt: 3.2 GB at most"
        " · :material/hard_drive: 2.50 GB of disk"
    )
