"""Every page through the shell: empty, filled, and given what it cannot use."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lab import paths, presets, process
from lab.atomic_files import write_json
from lab.forecasts import Forecast, How, MemoryForecast
from lab.paths import RunDir, all_runs
from lab.runs import (
    actions,
    estimate_history,
    export_import,
    index,
    resume_settings,
    supervisor_start,
)
from lab.ui import estimate_panel, runs_view
from tests.ui.conftest import Page, words


@pytest.fixture
def run(trained: list[RunDir]) -> RunDir:
    actions.delete(trained[0])
    return trained[1]


@pytest.mark.parametrize(
    ("page", "says"),
    [
        ("home", "Start the first one above"),
        ("monitor", "No runs yet. Start one"),
        ("runs", "No runs yet"),
        ("new_run", "BASE MODEL"),
        ("chat", "Ask all models the same question"),
    ],
)
def test_empty_states_say_what_to_do(open_page: Page, page: str, says: str) -> None:
    assert says in words(open_page(page))


@pytest.mark.parametrize("page", sorted(file.stem for file in (paths.ROOT / "pages").glob("*.py")))
def test_every_page_opens_in_an_empty_home(open_page: Page, page: str) -> None:
    assert words(open_page(page)).strip(), "a page says something before there is anything to show"


def test_home_lists_recent_runs(open_page: Page, run: RunDir) -> None:
    text = words(open_page("home"))
    assert "This machine" in text and "tiny lora · LoRA r" in text.replace("\\", "")


def test_monitor_of_a_finished_run(open_page: Page, run: RunDir) -> None:
    at = open_page("monitor", run=run.id)
    figures = {metric.label: metric.value for metric in at.metric}
    assert figures["Peak memory"].endswith("B") and float(figures["Training loss"]) > 0
    assert "12 steps" in words(at) and "Sample outputs" in words(at)
    assert not [button for button in at.button if button.key == "stop"]
    charts = at.get("plotly_chart")
    assert len(charts) >= 4
    parts = {row.name: row for row in estimate_history.measured_parts(run)}
    for name in ("weights", "gradients", "optimizer"):  # tensors by kind: nearly exact
        assert parts[name].measured == pytest.approx(parts[name].predicted, rel=0.01), name
    history = estimate_history.error_history("cpu")
    assert history is not None and history.median == history.worst
    (error,) = history.errors
    assert error.id == run.id and error.predicted > 0.5 * error.measured


@pytest.mark.parametrize("asked", ["../../etc", "20990101-000000-lora-zzzz", "x" * 5000, "<b>"])
def test_monitor_of_a_run_that_is_not_there(open_page: Page, run: RunDir, asked: str) -> None:
    at = open_page("monitor", run=asked)
    assert "not found; showing another run" in at.warning[0].value
    assert at.query_params["run"] == run.id


@pytest.mark.parametrize("page", ["monitor", "results"])
def test_the_run_that_was_chosen_stays_whatever_it_is_called_meanwhile(
    open_page: Page, trained: list[RunDir], page: str
) -> None:
    """Its state, loss and age change while one looks, and with them what the picker says."""
    full, lora = trained
    at = open_page(page, run=full.id)
    at.button(key=f"{page}.run.pick.{lora.id}").click().run()
    assert at.query_params["run"] == lora.id
    at.button(key=f"{page}.run.pick.{full.id}").click().run()
    for number in range(2):
        index.rename(full, f"another name {number}")
        at.run()
        assert at.query_params["run"] == full.id and not at.warning
    assert "another name 1" in words(at)


def test_monitor_offers_to_resume_a_crashed_run(open_page: Page, run: RunDir) -> None:
    run.result.unlink()
    run.process.write_text('{"pid": 999999, "start": 1}')
    at = open_page("monitor", run=run.id)
    assert "killed, ran out of memory, or the" in at.error[0].value.replace("\\", "")
    assert at.button(key="resume")


def test_a_stop_names_its_deadline_and_can_be_forced(
    open_page: Page, run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor_start, "ensure", lambda: None)
    run.result.unlink()
    process.register(run, os.getpid())
    beat = {"phase": "training", "done": 3, "total": 12, "unit": "step", "step_s": 120.0}
    write_json(run.heartbeat, beat | {"time": time.time(), "slowest_s": 120.0})
    at = open_page("monitor", run=run.id)
    assert not [button for button in at.button if button.key == "kill"], "not before a stop"
    at.button(key="stop").click().run()
    assert "It ends after this step, about 2 min" in words(at)
    at.button(key="kill").click().run()
    assert not at.exception and (run.commands / "kill").exists()


def test_a_finished_run_can_be_made_longer(
    open_page: Page, run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lab.runs.actions.submit", lambda run: None)
    at = open_page("monitor", run=run.id)
    assert "It continues from the checkpoint of step 8" in words(at)
    at.button(key=f"resume.{run.id}.go").click().run()
    assert "give more" in words(at) or "nothing left to train" in words(at)
    at.text_input(key=f"resume.{run.id}.max_steps").set_value("30").run()
    at.button(key=f"resume.{run.id}.go").click().run()
    assert not at.exception
    assert resume_settings.changes_of(run) == {"max_steps": 30}


def test_a_finished_run_without_checkpoints_says_what_to_do(open_page: Page, run: RunDir) -> None:
    shutil.rmtree(run.checkpoints)
    at = open_page("monitor", run=run.id)
    assert "No checkpoint is left to continue from: continue training in a new run" in words(at)


def test_resume_with_other_settings(
    open_page: Page, run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lab.runs.actions.submit", lambda run: None)
    run.result.write_text('{"state": "stopped"}')
    at = open_page("monitor", run=run.id)
    at.text_input(key=f"resume.{run.id}.max_steps").set_value("-3").run()
    at.button(key=f"resume.{run.id}.go").click().run()
    assert "is -3; it must be at least 1" in words(at).replace("\\", "")
    at.text_input(key=f"resume.{run.id}.max_steps").set_value("30").run()
    at.button(key=f"resume.{run.id}.go").click().run()
    assert not at.exception
    assert resume_settings.changes_of(run) == {"max_steps": 30}, "what was not touched stays"


def test_a_run_is_imported_in_the_browser(open_page: Page, run: RunDir, tmp_path: Path) -> None:
    file = export_import.export(run, tmp_path / "run.zip")
    for content, said in ((file.read_bytes(), ""), (b"not a zip", "cannot be imported")):
        at = open_page("runs")
        at.file_uploader(key="runs.import").upload("run.zip", content, "application/zip").run()
        at.button(key="runs.import.go").click().run()
        assert not at.exception and said in words(at)
    assert len(all_runs()) == 2
    assert not list((paths.home() / "uploads").iterdir())


ODD = [
    {"kind": "train", "step": "x", "train/loss": 1.0},
    {"kind": "train", "step": None, "attempt": "two"},
    {"kind": ["train"], "step": 1},
    {"kind": "train", "step": 1, "attempt": "two", "train/loss": 10**400},
    {"kind": "eval", "of": "base"},
    {"kind": "eval", "of": "base", "eval/loss": "low"},
    {"kind": "sample", "step": None, "text": None},
    {"kind": "sample", "step": "x", "text": ["a"], "prompt": 3},
    {"kind": "device", "time": "noon"},
    {
        "summary": {"step": "many", "tokens": [1], "seconds": "x", "peak_bytes": "y"},
        "state": "done",
    },
    {"phase": ["x"], "done": "x", "total": float("nan"), "eta_s": float("nan"), "pid": 1},
]
LINES = "".join(json.dumps(record) + "\n" for record in ODD)


@pytest.mark.parametrize(
    "garbage", ["", "{", "[]", '{"step": "x"}', "\x00", LINES, json.dumps(ODD[-2])]
)
def test_no_page_breaks_on_garbage(open_page: Page, run: RunDir, garbage: str) -> None:
    for file in (run.spec, run.metrics, run.events, run.result, run.process, run.heartbeat):
        file.write_text(garbage)
    for page in ("home", "monitor", "runs", "chat"):
        open_page(page, run=run.id)


@pytest.mark.parametrize("odd", ["text", 10**400, {"a": {"b": []}}])
def test_no_page_breaks_on_files_of_another_shape(
    open_page: Page, run: RunDir, odd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole JSON, in which each part is something else than it should be."""
    # asks nothing of the planner
    monkeypatch.setattr("lab.ui.estimate_panel.panel", lambda spec, side="": None)
    monkeypatch.setattr("lab.ui.start_bar._costs", lambda specs: [])
    spec = dict.fromkeys(("name", "model", "method", "data", "train", "hardware", "asked"), odd)
    run.spec.write_text(json.dumps(spec))
    keys = ("peak_bytes", "bytes", "at_peak", "pace", "facts", "device", "has_margin")
    run.estimate.write_text(json.dumps(dict.fromkeys(keys, odd)))
    run.labels.write_text(json.dumps(dict.fromkeys(("name", "tags", "notes", "archived"), odd)))
    run.first_batch.write_text(
        json.dumps({"rows": [{"tokens": odd, "sources": odd, "lengths": odd, "length": odd}, odd]})
    )
    run.pins.write_text(json.dumps({"steps": odd}))
    run.resume.write_text(json.dumps({"settings": odd}))
    for state in run.checkpoints.glob("*/state.json"):
        state.write_text(json.dumps({"eval_loss": odd}))
    figures = ("step", "tokens", "seconds", "train/loss", "eval/loss", "perf/step_s", "attempt")
    records = [{"kind": kind, "step": 1, **dict.fromkeys(figures[1:], odd)}
               for kind in ("train", "eval", "device")]  # fmt: skip
    run.metrics.write_text("".join(json.dumps(record) + "\n" for record in records))
    kinds = ("sample", "warning", "model", "data", "memory", "packing")
    parts = ("message", "text", "prompt", "step", "peaks", "weights", "trainable")
    events = [{"kind": kind, **dict.fromkeys(parts, odd)} for kind in kinds]
    run.events.write_text("".join(json.dumps(event) + "\n" for event in events))
    summary = dict.fromkeys(("step", "tokens", "seconds", "peak_bytes"), odd)
    ended = {"state": "failed", "message": odd, "hint": odd, "summary": summary}
    run.result.write_text(json.dumps(ended))
    for page in ("monitor", "runs", "chat", "home"):
        open_page(page, run=run.id)
    open_page("new_run", **{"from": run.id})


def test_runs_are_found_renamed_and_deleted(open_page: Page, run: RunDir) -> None:
    at = open_page("runs")
    assert list(at.dataframe[0].value["Name"]) == ["tiny lora"]
    at.text_input(key="runs.search").set_value("nothing like it").run()
    assert "No matching runs" in words(at)
    index.rename(run, "my favourite")
    at.text_input(key="runs.search").set_value("FAVOURITE").run()
    assert list(at.dataframe[0].value["Name"]) == ["my favourite"]
    index.update_labels(run, tags="good, small", notes="learns *fast*")
    at.text_input(key="runs.search").set_value("small").run()
    assert list(at.dataframe[0].value["Tags"]) == ["good, small"]
    index.update_labels(run, archived=True)
    at.run()
    assert "No matching runs" in words(at)
    at.toggle(key="runs.archived").set_value(True).run()
    assert list(at.dataframe[0].value["Name"]) == ["my favourite"]
    actions.delete(run)
    assert "No runs yet" in words(open_page("runs"))


def test_figures_as_csv(run: RunDir) -> None:
    lines = runs_view.figures_csv(run).splitlines()
    assert "train/loss" in lines[0] and "eval/loss" in lines[0]
    assert len(lines) == 1 + 12 + 4


def test_hostile_text_is_shown_as_text(open_page: Page, run: RunDir) -> None:
    with run.events.open("a") as file:
        event = {
            "kind": "sample",
            "step": 2,
            "prompt": "x",
            "text": "<script>alert(1)</script> **b**",
        }
        file.write(json.dumps(event) + "\n")
    index.rename(run, "<img src=x onerror=alert(1)> [x](javascript:1)")
    for page in ("home", "monitor", "runs", "chat"):
        at = open_page(page, run=run.id)
        assert all(not element.allow_html for element in at.markdown)
    text = words(open_page("monitor", run=run.id))
    assert "\\<script\\>" in text and "\\*\\*b\\*\\*" in text


def form(at: Any, key: str, value: Any) -> None:
    for kind in ("text_input", "number_input", "selectbox"):
        for widget in at.get(kind):
            if widget.key == key:
                widget.set_value(value)
                return
    raise AssertionError(f"no widget {key}")


def problems_shown(at: Any) -> list[str]:
    """What stands in red, under fields and in the bar; not the dots of a legend."""
    texts = [str(element.value) for element in at.markdown]
    return [text for text in texts if text.startswith(":red[") and not text.startswith(":red[●")]


def test_new_run_shows_all_problems_beside_their_fields(open_page: Page) -> None:
    at = open_page("new_run")
    form(at, "new.data.max_length", 4)
    form(at, "new.train.learning_rate", "fast")
    form(at, "new.method.lora.rank", 0)
    at.run()
    assert not at.exception
    *beside, bar = sorted(problems_shown(at), key=lambda text: "problems" in text)
    assert len(beside) == 3 and any("is 4; it must be at least 8" in text for text in beside)
    assert "**3 problems:** **Sequence length**" in bar
    assert at.button(key="start").disabled and at.button(key="check").disabled
    assert all_runs() == []
    form(at, "new.data.max_length", 64)
    form(at, "new.train.learning_rate", "auto")
    form(at, "new.method.lora.rank", 4)
    at.run()
    at.button(key="check").click().run()
    assert not at.error and "Ready to start" in words(at)
    assert not problems_shown(at)


def test_every_field_of_a_spec_stands_on_the_form() -> None:
    import dataclasses

    from lab.spec_sections import DataSpec, TrainSpec
    from lab.ui import new_run_view

    shown = [
        *new_run_view.MAIN_TRAIN, *new_run_view.LENGTHS, *new_run_view.SCHEDULE,
        *new_run_view.PRECISION, *new_run_view.SAVING,
    ]  # fmt: skip
    assert sorted(shown) == sorted(field.name for field in dataclasses.fields(TrainSpec))
    data = {*new_run_view.MORE_DATA, *new_run_view.MAIN_DATA, "dataset"}
    assert data == {field.name for field in dataclasses.fields(DataSpec)}


def test_presets_fill_the_form(open_page: Page) -> None:
    at = open_page("new_run")
    for preset in presets.PRESETS:
        at.session_state["new.preset"] = preset.name
        at.run()
    at.pills(key="new.preset").set_value("full").run()
    assert at.session_state["new.method.name"] == "full"
    assert "**Full fine\\-tuning** · SmolLM2" in words(at)
    at.pills(key="new.preset").set_value("full-lora").run()
    assert not at.exception and at.button(key="start").label == "Start both"
    assert "**LoRA r16** against **Full fine\\-tuning**" in words(at)


@pytest.mark.every_method
def test_the_form_draws_every_method(open_page: Page) -> None:
    """Each method's options, its picture and its reasons; and its defaults are a valid spec."""
    from lab import methods
    from lab.ui import form as drawn

    at = open_page("new_run")
    for method in methods.all_methods():
        at.session_state["new.method.name"] = method.name
        at.run()
        assert not at.exception, f"{method.name}: {at.exception}"
        assert at.get("image"), f"{method.name} has no picture"
        for field in dataclasses.fields(method.config):
            assert drawn.key(f"method.{method.name}", field.name) in at.session_state
    at.session_state["new.method.name"] = "lora"
    at.run()
    form(at, "new.method.lora.layer_ranks", "4, x")
    at.run()
    beside, bar = problems_shown(at)
    assert "must be list of numbers" in beside and "**1 problem:** **Rank per layer**" in bar


def test_duplicate_takes_over_what_was_asked(open_page: Page, run: RunDir) -> None:
    at = open_page("new_run", **{"from": run.id, "on": "1"})
    assert at.session_state["new.init_from_run"] == f"run:{run.id}"
    assert "from the weights of" in words(at)
    at = open_page("new_run", **{"from": run.id})
    assert at.session_state["new.train.max_steps"] == 12
    assert at.session_state["new.data.packing"] == "off"
    assert at.session_state["new.name"] == "tiny lora (copy)"


def test_one_form_is_one_run(
    open_page: Page,
    make_spec: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from lab.runs import submissions
    from tests.answers import checked

    monkeypatch.setattr(actions, "submit", lambda run: None)
    plan, ticket = checked(make_spec()), submissions.new()
    first = submissions.start(plan, ticket)
    assert submissions.start(plan, ticket) == first, "a second click"
    at = open_page("new_run", draft=ticket)  # a reload in between
    assert "You already started **tiny lora** from this form." in words(at)
    opened: list[str] = []
    monkeypatch.setattr("lab.ui.links.open_run", opened.append)
    at.button(key="watch").click().run()
    assert opened == [first.id], "Open Monitor leads to the run that this form started"
    assert submissions.start(plan, submissions.new()) != first, "another form is another run"
    assert len(all_runs()) == 2
    actions.delete(first)
    again = submissions.start(plan, ticket)
    assert again != first and again.path.is_dir(), "the ticket of a deleted run is free again"
    assert submissions.is_same(ticket, plan.requested) and not submissions.is_same(ticket, {})


def test_a_selected_row_never_slides_to_its_neighbour(
    trained: list[RunDir], open_page: Page
) -> None:
    first, second = all_runs()
    at = open_page("runs")
    key = at.dataframe[0].key
    at.dataframe[0].select(rows=[0]).run() if hasattr(at.dataframe[0], "select") else None
    actions.delete(first)
    at.run()
    assert at.dataframe[0].key != key, "another list is another table, with nothing selected"
    assert list(at.dataframe[0].value["ID"]) == [second.id]


def test_the_plain_script_trains(
    tiny_model: Path, chats: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    import runpy

    from lab.export.script import script
    from lab.spec import RunSpec

    spec = RunSpec.from_json(
        {
            "method": {"name": "lora", "rank": 4, "target_modules": ["q_proj", "v_proj"]},
            "data": {"eval_fraction": 0.2, "max_length": 64},
            "train": {"max_steps": 8, "batch_size": 2, "learning_rate": 0.01},
        }
    )
    file = tmp_path / "train.py"
    file.write_text(script(spec, str(tiny_model), str(chats), "Be kind."))
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(file))
    said = capsys.readouterr().out
    losses = [
        float(line.split()[1]) for line in said.splitlines() if line[:5] in ("befor", "after")
    ]
    assert losses[1] < losses[0]
    assert (tmp_path / "output" / "adapter_model.safetensors").is_file()


def test_a_forecast_is_traced_only_while_somebody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    requests: list[tuple[bool, bool]] = []  # whether it was traced, and how long it takes

    def estimate(spec: object, shadow: bool = True, time: bool = False) -> Forecast:
        requests.append((shadow, time))
        return Forecast(MemoryForecast(how=How.EVERY_LAYER if shadow else How.OUTLINE))

    monkeypatch.setattr(estimate_panel.planner, "estimate", estimate)
    monkeypatch.setattr(estimate_panel, "DEBOUNCE_S", 0.2)
    left = estimate_panel.job_for({"name": "left at once"})
    time.sleep(0.5)
    assert left.was_abandoned and requests == [(False, False)]
    again = estimate_panel.job_for({"name": "left at once"})
    end = time.monotonic() + 10
    while not again.is_complete:
        assert time.monotonic() < end
        time.sleep(0.05)
        assert estimate_panel.job_for({"name": "left at once"}) is again
    assert requests == [(False, False), (False, False), (True, True)]
    assert again.estimate == estimate(None)


def test_new_run_says_the_memory_while_the_form_is_filled_in(open_page: Page) -> None:
    at = open_page("new_run")
    end = time.monotonic() + 60
    while "peak in the" not in words(at):
        assert time.monotonic() < end, words(at)
        time.sleep(0.2)
        at.run()
    before = peak(at)
    assert "estimate with a margin" in words(at) and "Reading the model" not in words(at)
    at.number_input(key="new.train.batch_size").set_value(64).run()
    while "peak in the" not in words(at) or peak(at) == before:
        assert time.monotonic() < end, words(at)
        time.sleep(0.2)
        at.run()
    assert peak(at) > 1.2 * before


def peak(at: Any) -> float:
    """The GB that the MEMORY card says."""
    (size,) = re.findall(r"#### ([\d.]+) of", words(at))
    return float(size)
