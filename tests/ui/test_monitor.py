"""The Monitor and Runs pages, figure by figure."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from lab import process
from lab.atomic_files import write_json
from lab.paths import RunDir
from lab.runs import checkpoints, index
from lab.runs.metric_series import MetricSeries
from lab.runs.run_progress import Phase, RunProgress
from lab.runs.status import Status
from lab.ui import (
    cards,
    chart_style,
    checkpoint_panel,
    end_card,
    monitor_charts,
    monitor_details,
    monitor_view,
    run_picker,
    runs_view,
)
from lab.ui.charts import View
from tests.ui.screen import Screen
from tests.ui.test_panels import make_run


def write(run: RunDir, *records: dict[str, Any]) -> None:
    with run.metrics.open("a") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)


def train(step: int, **more: Any) -> dict[str, Any]:
    return {"kind": "train", "attempt": 1, "step": step, "train/loss": 5.0 - step, **more}


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    shown = Screen()
    for module in (monitor_view, monitor_details, end_card, cards, checkpoint_panel):
        monkeypatch.setattr(module, "st", shown)
    return shown


def test_the_figures_of_a_run(screen: Screen) -> None:
    run = make_run(1, estimate={"pace": {"seconds": 90.0, "loading_s": 20.0}},
                   result={"state": "crashed", "message": "It [fell]", "hint": "Resume it.",
                           "started": 1000.0, "ended": 1125.0})  # fmt: skip
    write(
        run,
        {"kind": "eval", "of": "base", "step": 0, "eval/loss": 3.0},
        train(2, tokens=4000, seconds=95.0,
              **{"perf/tokens_per_s": 1234.4, "perf/mfu": 0.41, "memory/peak_bytes": 2e9}),
        {"kind": "eval", "attempt": 1, "step": 2, "eval/loss": 2.25},
    )  # fmt: skip
    monitor_view.state(run)
    assert not [kind for kind, _, _ in screen.calls if kind == "metric"], "below the end's card"
    monitor_view.figures(run)
    metrics = {args[0]: (args[1], args[2]) for kind, args, _ in screen.calls if kind == "metric"}
    assert metrics == {
        "Training loss": ("3.000", None),
        "Evaluation loss": ("2.250", "-0.750 vs base"),
        "Tokens/s": ("1,234", None),
        "MFU": ("41 %", None),
        "Tokens": ("4.0 k", None),
        "Peak memory": ("2.00 GB", None),
        "Run time": ("2 min 05 s", "1 min 50 s estimated"),
    }
    colours = {named["delta_color"] for named in screen.named("metric")}
    assert colours == {"inverse", "off"}, "a loss that falls is good"
    assert screen.texts("error") == ["It [fell]\n\nResume it."], "a crash is no mere warning"
    assert screen.texts("warning") == []


@pytest.mark.parametrize(
    ("pending", "usable"),
    [
        ((), {"stop", "save", "cancel"}),
        (("stop",), {"cancel", "kill"}),
        (("cancel",), {"kill"}),
        (("cancel", "kill"), set()),
    ],
)
def test_a_process_is_killed_only_after_it_was_asked_to_end(
    screen: Screen, pending: tuple[str, ...], usable: set[str]
) -> None:
    run = make_run(1, heartbeat={"phase": "training", "done": 5, "total": 20})
    process.register(run, os.getpid())
    for name in pending:
        (run.commands / name).touch()
    monitor_view.actions_while_active(run)
    buttons = {named["key"]: named["disabled"] for named in screen.named("button")}
    assert {name for name, is_disabled in buttons.items() if not is_disabled} == usable
    assert ("kill" in buttons) == bool(pending)


@pytest.mark.parametrize("pressed", ["stop", "save", "cancel"])
def test_each_button_writes_the_command_of_its_name(
    screen: Screen, monkeypatch: pytest.MonkeyPatch, pressed: str
) -> None:
    run = make_run(1, heartbeat={"phase": "training", "done": 5, "total": 20})
    process.register(run, os.getpid())
    commands: list[str] = []
    monkeypatch.setattr(monitor_view.actions, "command", lambda run, name: commands.append(name))
    screen.pressed = (pressed,)
    monitor_view.actions_while_active(run)
    assert commands == [pressed]


def test_a_run_that_waits_says_its_place_from_one_on(screen: Screen) -> None:
    runs = [make_run(number, queue={"order": float(number)}) for number in (1, 2, 3)]
    about = [monitor_view._about(run, index.entry(run)) for run in runs]
    assert about == [f"number {place} in the queue" for place in (1, 2, 3)]


@pytest.mark.parametrize(
    ("state", "kind"),
    [
        ("failed", "error"), ("crashed", "error"), ("stalled", "error"), ("stopped", "warning"),
        ("cancelled", "warning"), ("queued", "warning"),
    ],
)  # fmt: skip
def test_what_a_person_did_is_a_warning_and_what_went_wrong_an_error(
    screen: Screen, monkeypatch: pytest.MonkeyPatch, state: str, kind: str
) -> None:
    run = make_run(1, result={"state": "done"})
    monkeypatch.setattr(
        monitor_view, "status", lambda run: Status(state, message="It *said*.", hint="Do.")
    )
    monkeypatch.setattr(monitor_view, "_phases", lambda run: None)
    monitor_view.state(run)
    assert screen.texts("error", "warning") == screen.texts(kind) == ["It *said*.\n\nDo."]


@pytest.mark.parametrize(
    ("is_active", "says"), [(True, "has cost so far: "), (False, "has cost: ")]
)
def test_a_run_has_cost_so_far_until_it_ends(screen: Screen, is_active: bool, says: str) -> None:
    run = make_run(1, **({} if is_active else {"result": {"state": "done"}}))
    if is_active:
        process.register(run, os.getpid())
    write(run, train(1, seconds=1.0))
    monitor_view.figures(run)
    assert says in screen.texts("caption")[-1]


def test_a_stop_is_no_error(screen: Screen) -> None:
    monitor_view.state(make_run(1, result={"state": "stopped", "message": "As asked."}))
    assert screen.texts("error") == [] and "As asked." in screen.texts("warning")[0]


def test_what_a_chart_is_read_out_as_names_the_run(
    screen: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitor_charts, "st", screen)
    monkeypatch.setattr(chart_style, "st", screen)
    monkeypatch.setattr(monitor_charts, "is_dark", lambda: True)
    run = make_run(1)
    write(run, train(1) | {"train/learning_rate": 1e-3},
          {"kind": "eval", "of": "base", "step": 0, "eval/loss": 3.0},
          {"kind": "eval", "attempt": 1, "step": 1, "eval/loss": 2.5})  # fmt: skip
    index.rename(run, "wren lora")
    screen.answers[f"chart.loss.{run.id}"] = None  # no point is clicked
    monitor_charts.show_loss(run, View())
    monitor_charts.show_others(run, View())
    texts = [named["alt"] for named in screen.named("plotly_chart")]
    assert texts[0] == "Evaluation loss of wren lora, from 3.00 to 2.50"
    assert len(texts) > 1 and all(text.endswith(" of wren lora") for text in texts[1:])
    grids = {
        args[0].layout.yaxis.gridcolor for kind, args, _ in screen.calls if kind == "plotly_chart"
    }
    assert grids == {View(dark=True).grid}, "in the theme of now, not of when the page was drawn"


def test_the_newest_run_is_shown_first(screen: Screen) -> None:
    old, new = (make_run(number, result={"state": "done"}) for number in (1, 2))
    assert monitor_view.choose() == new
    screen.query_params["run"] = old.id
    assert monitor_view.choose() == old
    screen.query_params["run"] = "no-run"
    assert monitor_view.choose() == new and "no-run" in screen.texts("warning")[0]


def test_charts_are_drawn_anew_for_what_is_new_and_only_then() -> None:
    run = make_run(1)
    write(run, train(1), train(2))
    series = MetricSeries(run).refresh()
    first = monitor_charts.charts_of(series, View())["loss"][1]
    assert monitor_charts.charts_of(series.refresh(), View())["loss"][1] is first
    write(run, {"kind": "eval", "attempt": 1, "step": 2, "eval/loss": 2.0})
    evaluated = monitor_charts.charts_of(series.refresh(), View())["loss"][1]
    assert {trace.name for trace in evaluated.data} == {"training", "evaluation"}
    write(run, train(2, attempt=2) | {"train/loss": 9.0})
    again = monitor_charts.charts_of(series.refresh(), View())["loss"][1]
    assert next(trace for trace in again.data if trace.name == "training").y[-1] == 9.0, (
        "a later attempt has as many steps, and other ones"
    )


def test_charts_show_a_new_checkpoint_and_what_the_overlaid_run_has_come_to() -> None:
    run, other = make_run(1), make_run(2)
    for each in (run, other):
        write(each, train(1), {"kind": "eval", "attempt": 1, "step": 1, "eval/loss": 3.0})
    series, overlaid = MetricSeries(run).refresh(), MetricSeries(other).refresh()

    def drawn() -> dict[str, Any]:
        _, chart = monitor_charts.charts_of(series, View(), overlaid)["loss"]
        return {trace.name: list(trace.y) for trace in chart.data}

    assert drawn()["evaluation, overlaid"] == [3.0] and "checkpoint" not in drawn()
    write(other, {"kind": "eval", "attempt": 1, "step": 2, "eval/loss": 2.0})
    overlaid.refresh()
    assert drawn()["evaluation, overlaid"] == [3.0, 2.0]
    (run.checkpoints / "step-1").mkdir(parents=True)
    assert drawn()["checkpoint"] == [3.0]


def test_the_bar_never_runs_back_but_for_another_attempt(
    screen: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, filled = make_run(1), list[float]()
    monkeypatch.setattr(monitor_view, "bar", lambda progress, fraction: filled.append(fraction))
    for attempt, spent_s in ((1, 60.0), (1, 30.0), (2, 10.0)):
        write(run, train(attempt, attempt=attempt))
        progress = RunProgress((Phase("train", "now", spent_s, 100.0),))
        monkeypatch.setattr(monitor_view, "run_progress", lambda run, now=progress: now)
        monitor_view._phases(run)
    assert filled == [0.6, 0.6, 0.1], "a resumed run begins again"


def test_while_it_trains_the_time_is_corrected_and_at_its_end_what_was_said_before(
    screen: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[tuple[Any, Any]] = []
    monkeypatch.setattr(
        monitor_view, "expected", lambda run, step, seconds: measured.append((step, seconds))
    )
    run = make_run(1, result={"state": "done"})
    write(run, train(2, seconds=95.0))
    monitor_view.figures(run)
    assert measured[-1] == (None, None), "the estimate from before the start"
    monkeypatch.setattr(monitor_view, "status", lambda run: Status("training"))
    monitor_view.figures(run)
    assert measured[-1] == (2.0, 95.0), "corrected by the steps that are done"


@pytest.mark.parametrize(("step_s", "looks"), [(0.01, 1.0), (2.6, 3.0), (90.0, 5.0)])
def test_charts_are_looked_at_about_once_a_step(step_s: float, looks: float) -> None:
    run = make_run(1)
    write(run, train(1, **{"perf/step_s": step_s}))
    assert monitor_charts.pace(run) == looks


def test_a_checkpoint_is_pinned_and_unpinned(
    screen: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitor_details, "run_action", lambda action: action())
    run = make_run(1, result={"state": "done"})
    (run.checkpoints / "step-8").mkdir(parents=True)
    write_json(run.checkpoints / "step-8" / "state.json", {"eval_loss": 2.5})
    screen.pressed = (f"pin.{run.id}.8",)
    for pinned in ({8}, set()):
        monitor_details._checkpoint(run, checkpoints.table(run)[0])
        assert checkpoints.pinned(run) == pinned
    text = screen.texts("markdown")[0]
    assert text.startswith("Step 8 · ") and text.endswith("· evaluation loss 2.500")
    labels = [args[0] for kind, args, named in screen.calls if kind == "button"]
    assert labels == ["Measure it", "Pin", "Delete", "Measure it", "Unpin"], (
        "what is pinned is not deleted"
    )


def test_the_newest_samples_are_shown(screen: Screen) -> None:
    run = make_run(1)
    events = [
        {"kind": "sample", "step": step, "prompt": "Hi", "text": f"answer {step}"}
        for step in range(6)
    ]
    run.events.write_text("".join(json.dumps(event) + "\n" for event in events))
    monitor_details.samples(run)
    answers = [text for text in screen.texts("markdown") if text.startswith("answer")]
    assert answers == ["answer 0", "answer 4", "answer 5"], "the base, and the newest"


@pytest.mark.parametrize(
    ("typed", "states", "names"),
    [
        ("", [], ["red cat", "red dog"]),
        ("RED dog", [], ["red dog"]),
        ("", ["failed"], ["red cat"]),
        ("dog", ["failed"], []),
    ],
)
def test_runs_are_found_by_all_words_and_any_of_the_states(
    monkeypatch: pytest.MonkeyPatch, typed: str, states: list[str], names: list[str]
) -> None:
    make_run(1, "red dog", result={"state": "done"})
    make_run(2, "red cat", result={"state": "failed"})
    make_run(3, "red bird", result={"state": "done"}, labels={"archived": True})
    answers = {"runs.search": typed, "runs.states": states}
    monkeypatch.setattr(runs_view, "st", Screen(**answers))
    assert [entry.name for entry in runs_view.search(index.entries())] == names


def test_the_records_of_a_csv_are_in_the_order_of_the_steps() -> None:
    run = make_run(1)
    write(run, train(1), train(2), train(3),
          {"kind": "eval", "attempt": 1, "step": 2, "eval/loss": 2.0})  # fmt: skip
    lines = runs_view.figures_csv(run).splitlines()
    columns = lines[0].split(",")
    rows = [dict(zip(columns, line.split(","), strict=True)) for line in lines[1:]]
    assert [(row["step"], row["kind"]) for row in rows] == [
        ("1", "train"), ("2", "eval"), ("2", "train"), ("3", "train"),
    ]  # fmt: skip
    assert rows[1]["eval/loss"] == "2.0" and rows[1]["train/loss"] == ""


@pytest.mark.parametrize(
    ("base", "last", "text"),
    [
        (3.59, 2.82, "3.59 → 2.82 (−21 %)"),
        (2.82, 3.01, "2.82 → 3.01 (+6.7 %)"),
        (3.0, 3.0, "3.00 → 3.00 (±0 %)"),
        (2.0, 1.8, "2.00 → 1.80 (−10 %)"),
    ],
)
def test_a_gain_is_said_with_its_sign_and_per_cent(base: float, last: float, text: str) -> None:
    assert end_card.change_in_words(base, last) == text


def test_a_run_is_compared_with_the_newest_that_did_the_same(screen: Screen) -> None:
    def run_of(number: int, state: str = "done", dataset: str = "a.jsonl", **labels: Any) -> RunDir:
        run = make_run(number, result={"state": state})
        spec = {"v": 1, "model": "org/a", "method": {"name": "lora"}, "data": {"dataset": dataset}}
        write_json(run.spec, spec)
        write_json(run.labels, labels)
        return run

    run, older, newer = run_of(1), run_of(2), run_of(3)
    run_of(4, archived=True)
    run_of(5, "failed")
    run_of(6, dataset="b.jsonl")
    assert end_card.partner(index.entry(run)) == [newer.id]
    assert end_card.partner(index.entry(newer)) == [older.id], "another one than itself"


def test_the_end_says_what_was_gained_and_shows_both_answers(screen: Screen) -> None:
    run = make_run(1, result={"state": "done", "summary": {"step": 2, "seconds": 95.0}})
    write(
        run,
        {"kind": "eval", "of": "base", "step": 0, "eval/loss": 3.0},
        train(1), {"kind": "eval", "attempt": 1, "step": 1, "eval/loss": 2.0},
        train(2), {"kind": "eval", "attempt": 1, "step": 2, "eval/loss": 2.4},
    )  # fmt: skip
    answers = [(0, "I am SmolLM."), (1, "half"), (2, "I am Wren.")]
    run.events.write_text(
        "".join(
            json.dumps({"kind": "sample", "step": step, "prompt": "Who?", "text": text}) + "\n"
            for step, text in answers
        )
    )
    end_card.show(run)
    text = "\n".join(screen.texts())
    assert "Evaluation loss 3.00 → 2.40 (−20 %), best at step 1 (2.00)" in text
    assert "2 steps · 1 min 35 s of training" in text
    assert "I am SmolLM." in text and "I am Wren." in text and "half" not in text
    labels = [args[0] for kind, args, _ in screen.calls if kind == "button"]
    assert labels == ["Compare"], "nothing to chat with: it has left no model"
    screen.calls.clear()
    end_card.show(make_run(2))
    assert screen.calls == [], "a run that has not ended has no such card"


def test_settings_are_those_that_differ_from_the_defaults() -> None:
    requested = {"method": {"name": "lora", "rank": 4}, "train": {"max_steps": 20}}
    resolved = {**requested, "train": {"max_steps": 20, "learning_rate": 2e-4}}
    for key in ("requested", "asked"):  # now, and in earlier versions
        assert monitor_details.settings_table({**resolved, key: requested}) == [
            {"Setting": "LoRA rank", "Value": "4", "Default": "16"},
            {"Setting": "Max steps", "Value": "20", "Default": "–"},
        ], "the rate was left to the lab"
    stored = {**resolved, "requested": requested}
    everything = monitor_details.settings_table(stored, everything=True)
    rates = [row for row in everything if row["Setting"] == "Learning rate"]
    assert rates == [{"Setting": "Learning rate", "Value": "2e-4", "Default": "auto"}]


@pytest.mark.parametrize("state", ["cancelled", "failed", "stopped"])
def test_a_run_without_a_step_never_speaks_of_steps_to_come(screen: Screen, state: str) -> None:
    monitor_view.state(make_run(1, result={"state": state}))
    text = "\n".join(screen.texts())
    assert "before the first step" in text and "appear after" not in text


def test_runs_to_choose_from_say_what_they_are(
    screen: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_picker, "st", screen)
    old = make_run(1, "old one", result={"state": "done"})
    make_run(2, "waiting")
    write(old, {"kind": "eval", "attempt": 1, "step": 2, "eval/loss": 2.25})
    screen.answers[f"monitor.run.search.{old.id}"] = ""
    monitor_view.pick(old)
    labels = screen.texts("button")
    assert "old one · LoRA" in screen.texts("popover")[0]
    assert ["waiting" in labels[0], "old one" in labels[1]] == [True, True], "what waits is first"
    assert ":gray[· done · 2.25 · " in labels[1]
    icons = [named["icon"] for kind, _, named in screen.calls if kind == "button"]
    assert icons == [None, ":material/check:"], "the run that is shown is marked"
    assert screen.texts("caption") == ["Waiting", "Ended"]
    screen.calls.clear()
    screen.answers[f"monitor.run.search.{old.id}"] = "done LORA"
    monitor_view.pick(old)
    assert len(screen.texts("button")) == 1 and "old one" in screen.texts("button")[0]
    screen.answers[f"monitor.run.search.{old.id}"] = "nowhere"
    monitor_view.pick(old)
    assert "No matching runs." in screen.texts("caption")


def test_many_runs_are_listed_in_part(screen: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_picker, "st", screen)
    monkeypatch.setattr(run_picker, "MAX_LISTED", 2)
    runs = [make_run(number, result={"state": "done"}) for number in range(1, 6)]
    screen.answers[f"monitor.run.search.{runs[0].id}"] = ""
    monitor_view.pick(runs[0])
    assert len(screen.texts("button")) == 2
    assert screen.texts("caption")[-1] == "3 more: search for them."


def test_a_run_that_trains_is_listed_however_old_it_is(
    screen: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_picker, "st", screen)
    monkeypatch.setattr(run_picker, "MAX_LISTED", 2)
    trains = make_run(1, "trains", heartbeat={"phase": "training"})
    process.register(trains, os.getpid())
    make_run(2, "waits", queue={"order": 1.0})
    for number in (3, 4):
        make_run(number, "ended", result={"state": "done"})
    screen.answers[f"monitor.run.search.{trains.id}"] = ""
    monitor_view.pick(trains)
    labels = screen.texts("button")
    assert ["trains" in labels[0], "waits" in labels[1]] == [True, True] and len(labels) == 2
    assert screen.texts("caption") == ["Training", "Waiting", "2 more: search for them."]
