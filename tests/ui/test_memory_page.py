"""The Memory page: any model and device in the URL, all methods, two settings, uploads."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lab import methods, paths
from lab.atomic_files import write_json
from lab.errors import LabError
from lab.fit_answers import FitLimits
from lab.forecasts import Forecast
from lab.models import uploaded_configs
from lab.paths import RunDir
from lab.preflight.client import planner
from lab.ui import (
    memory_handoff,
    memory_limits,
    memory_settings,
    memory_view,
    method_estimates,
)
from lab.ui.memory_charts import Bars
from lab.ui.waiting import BackgroundJob
from tests.ui.conftest import Page, words
from tests.ui.screen import Screen

pytestmark = pytest.mark.usefixtures("forecasts")

PEAKS = {"full": 60e9, "lora": 20e9, "qlora": 8e9}
CONFIG = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2}


@pytest.fixture
def questions(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A planner that answers at once, a fifth less for a batch of one; the specs that it got.
    What the estimates themselves say is tested in tests/forecast and tests/preflight."""
    asked_specs: list[dict[str, Any]] = []

    def estimate(spec: dict[str, Any], device: Any, *, shadow: bool) -> Forecast:
        asked_specs.append(spec)
        peak = PEAKS.get(spec["method"]["name"], 10e9)
        peak *= 0.8 if spec["train"]["batch_size"] == 1 else 1
        stored = {
            "peak_bytes": peak, "at_peak": {"weights": peak}, "device_bytes": 24e9,
            "fits": peak < 24e9, "source": "shadow" if shadow else "outline", "settings": {},
            "rules": {"A4": 32e9}, "is_bound": False,
        }  # fmt: skip
        forecast = Forecast.from_json(stored)
        assert forecast is not None
        return forecast

    monkeypatch.setattr(planner, "estimate", estimate)
    monkeypatch.setattr(planner, "warm", lambda: None)
    monkeypatch.setattr(
        planner, "limits",
        lambda spec, device: FitLimits(7961, 9, "Qwen3-8B")
        if spec["method"]["name"] != "full" else FitLimits(0, 0, ""),
    )  # fmt: skip
    method_estimates._jobs._entries.clear()
    memory_limits._jobs._entries.clear()
    return asked_specs


def answered(at: Any) -> str:
    """The page once its estimates are there; what it says."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if all(job.is_complete for job in method_estimates._jobs._entries.values()):
            break
        time.sleep(0.02)
    at.run()
    assert not at.exception
    return words(at).replace("\\", "")


@pytest.mark.every_method
def test_the_url_opens_a_view_of_the_methods(
    open_page: Page, questions: list[dict[str, Any]]
) -> None:
    query = {"model": "config:SmolLM2-135M", "device": "T4 16GB", "rows": "2", "length": "128"}
    at = open_page("memory", **query)
    text = answered(at)
    assert at.selectbox(key="memory.model").value == "config:SmolLM2-135M"
    assert at.selectbox(key="device").value == "T4 16GB"
    assert {spec["model"] for spec in questions} == {"config:SmolLM2-135M"}
    assert {spec["train"]["batch_size"] for spec in questions} == {2}
    ways = {spec["method"]["name"]: spec["train"]["activation_checkpointing"] for spec in questions}
    off = {name for name, way in ways.items() if way == "off"}
    assert off == {name for name in ways if not methods.get(name).can_checkpoint_activations}
    assert {way for name, way in ways.items() if name not in off} == {"on"}, (
        "the same for every method, or every bar would fill the device"
    )
    assert "since unsupported: Prefix tuning" in text
    assert len(at.get("plotly_chart")) == 1
    assert "LoRA needs 3.0 times less memory than full fine-tuning here" in text
    assert f"{len(methods.names()) - 1} of {len(methods.names())} methods fit" in text
    (table,) = [table.value for table in at.dataframe]
    assert table["method"].iloc[0] == "QLoRA" and table["fits"].iloc[-1] == "✕ no"


def test_the_tabs_hold_the_limits_and_the_rules(
    open_page: Page, questions: list[dict[str, Any]]
) -> None:
    at = open_page("memory")
    answered(at)
    assert not memory_limits._jobs._entries, "Limits take long, and nobody has asked for them."
    at.session_state["memory.tab"] = "What still fits"
    at.run()
    deadline = time.monotonic() + 20
    while not all(job.is_complete for job in memory_limits._jobs._entries.values()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    at.run()
    usual = len(methods.standard_methods())
    assert words(at).count("max sequence length: **7,961** tokens") == usual - 1
    assert "max sequence length: **none fits**" in words(at)
    assert "max batch size: **none fits**" in words(at)
    at.session_state["memory.tab"] = "Rules of thumb"
    at.run()
    (table,) = [table.value for table in at.dataframe]
    assert [url.partition("rule=")[2] for url in table["claim"]] == ["A4"] and table["error"][
        0
    ] == pytest.approx(32 / 60 - 1)
    at.button(key="memory.sizes").click().run()
    assert not at.exception
    sizes = at.dataframe[-1].value
    assert list(sizes["size"]) == ["7B", "13B", "34B", "70B"]
    assert list(sizes["LoRA (published)"]) == [18, 32, 80, 160]
    assert set(sizes["LoRA (estimate)"]) == {20.0}


def test_limits_that_fail_are_told_and_not_asked_for_without_end(
    open_page: Page, questions: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each tick of the page would begin another job, which fails as well."""
    asked_for: list[str] = []

    def fail(spec: dict[str, Any], device: dict[str, Any]) -> FitLimits:
        asked_for.append(spec["method"]["name"])
        time.sleep(0.2)  # the page is drawn before it fails, and would run again after it
        if len(asked_for) > 5:
            return FitLimits(1, 1, "")  # so that this test ends
        raise LabError("The planner has ended.")

    monkeypatch.setattr(planner, "limits", fail)
    at = open_page("memory", device="T4 16GB")
    answered(at)
    at.session_state["memory.tab"] = "What still fits"
    end_at_the_look(monkeypatch)
    at.run()
    at.run()
    assert len(asked_for) == 1, "Each look began another job."
    assert [error.value for error in at.error] == [r"The planner has ended\."]
    at.button(key="limits.again").click().run()
    assert len(asked_for) == 2, "A person asks again."


def end_at_the_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page that looks at a job waits for its end: what is drawn is then the same each time."""
    look = BackgroundJob.look

    def look_and_join(job: BackgroundJob, position: str) -> None:
        look(job, position)
        job.thread.join()

    monkeypatch.setattr(BackgroundJob, "look", look_and_join)


def test_a_bug_in_an_estimate_is_told_once_and_asked_for_again_by_a_person(
    open_page: Page, questions: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts: list[str] = []

    def fail(spec: dict[str, Any], device: Any, *, shadow: bool) -> Forecast:
        attempts.append(spec["method"]["name"])
        raise TypeError("the answer has <b>no</b> memory")

    answers = planner.estimate
    monkeypatch.setattr(planner, "estimate", fail)
    end_at_the_look(monkeypatch)
    at = open_page("memory", device="T4 16GB")
    for _ in range(3):  # as the timer of the page does
        at.run()
    assert len(attempts) == 1, "Every tick asked again."
    (error,) = at.error
    text = error.value.replace("\\", "")
    assert text == "Unexpected error: TypeError: the answer has <b>no</b> memory"
    (details,) = [code.value for code in at.code if "Traceback" in code.value]
    assert "in _ask_all" in details
    monkeypatch.setattr(planner, "estimate", answers)
    at.button(key="methods.again").click().run()
    assert not at.error and "LoRA needs 3.0 times less memory" in words(at)


@pytest.mark.parametrize(
    ("limit", "length", "rows", "model"),
    [
        (FitLimits(7961, 9, "Qwen3-8B"), "**7,961** tokens", "**9**", "**Qwen3-8B**"),
        (FitLimits(128, 0, ""), "**128** tokens", "**none fits**", "**none of the listed models**"),
        (FitLimits(0, 1200, ""), "**none fits**", "**1,200**", "**none of the listed models**"),
    ],
)
def test_each_limit_stands_under_its_own_name(
    monkeypatch: pytest.MonkeyPatch, limit: FitLimits, length: str, rows: str, model: str
) -> None:
    screen = Screen()
    monkeypatch.setattr(memory_limits, "st", screen)
    job = memory_limits.LimitsJob({}, {})
    job.limits, job.is_complete = {"lora": limit}, True
    memory_limits._draw(memory_settings.Setting("B", {}, "a card", {}), job)
    assert screen.texts("markdown") == [
        "**B: LoRA**",
        f"max sequence length: {length}\n\nmax batch size: {rows}\n\nlargest model: {model}",
    ]


def test_a_second_setting_stands_beside_the_first(
    open_page: Page, questions: list[dict[str, Any]]
) -> None:
    at = open_page("memory", rows="8", model="config:Llama-3.2-1B")
    at.toggle(key="second").set_value(True).run()
    assert at.select_slider(key="rows_b").value == 8, "it begins as the first one"
    assert at.selectbox(key="memory.model_b").value == "config:Llama-3.2-1B"
    at.select_slider(key="rows_b").set_value(1).run()
    text = answered(at)
    assert "Setting B needs 1.2 times less memory than setting A for LoRA" in text
    differences, figures = (table.value for table in at.dataframe)
    lora = differences[differences["method"] == "LoRA"].iloc[0]
    assert (lora["A (GB)"], lora["B (GB)"], lora["B less A (GB)"]) == (20.0, 16.0, -4.0)
    assert set(figures["setting"]) == {"A", "B"}
    assert [b.label for b in at.button if str(b.key).startswith("memory.use")] == [
        "Use A in New run", "Use B in New run",
    ]  # fmt: skip


def test_only_methods_that_are_known_to_fit_are_counted() -> None:
    def fitting(*verdicts: bool | None) -> str:
        rows: list[Any] = [
            SimpleNamespace(forecast=SimpleNamespace(memory=SimpleNamespace(fits=verdict)))
            for verdict in verdicts
        ]
        return memory_view._fitting(Bars(rows, "A *card*", 16_000_000_000, "B"))

    assert fitting(True, None, False) == "B: 1 of 3 methods fit into A \\*card\\* (16.00 GB)."
    assert fitting(None, None) == "", "nothing is known"


@pytest.mark.parametrize(
    ("lora", "full", "says"),
    [
        (20, 60, "needs 3.0 times less memory than full here**: 20.00 GB instead of 60.00 GB."),
        (60, 20, "needs 3.0 times more memory than full here**: 60.00 GB instead of 20.00 GB."),
        (20, 20.5, "needs about as much memory as full here**: 20.00 GB instead of 20.50 GB."),
    ],
)
def test_two_peaks_are_told_with_their_ratio(lora: float, full: float, says: str) -> None:
    sentence = memory_view._ratio("LoRA", int(lora * 1e9), "full", int(full * 1e9), " here")
    assert sentence == f"**LoRA {says}"


def test_a_setting_is_used_in_new_run(open_page: Page, questions: list[dict[str, Any]]) -> None:
    at = open_page("memory", rows="8", length="2048", rank="32")
    at.selectbox(key="memory.method").set_value("qlora").run()
    at.button(key="memory.use").click().run()
    assert not at.exception
    state = at.session_state
    assert state["new.model"] == "meta-llama/Llama-3.1-8B-Instruct"
    assert state["new.method.name"] == "qlora" and state["new.method.qlora.rank"] == 32
    assert state["new.train.batch_size"] == 8 and state["new.data.max_length"] == 2048
    assert state["new.train.activation_checkpointing"] == "on"


def test_what_has_no_weights_is_not_set_up(lab_home: Path) -> None:
    config = uploaded_configs.keep(json.dumps(CONFIG).encode(), "mine.json")
    with pytest.raises(LabError, match="has no weights"):
        memory_handoff.weights_of(str(config.folder))
    assert memory_handoff.weights_of("builtin:smollm2-135m-instruct").startswith("builtin:")


def test_a_config_is_uploaded_and_named(open_page: Page, questions: list[dict[str, Any]]) -> None:
    at = open_page("memory")
    content = json.dumps(CONFIG).encode()
    field = at.file_uploader(key="memory.upload")
    field.upload("my-*llama*.json", content, "application/json").run()
    assert not at.exception and not at.error
    (config,) = uploaded_configs.uploaded()
    assert config.folder.is_relative_to(paths.home())
    assert json.loads((config.folder / "config.json").read_text()) == CONFIG
    assert at.query_params["model"] in (config.id, [config.id]), "the address opens it again"
    picker = at.selectbox(key="memory.model")
    assert picker.value == config.id
    assert f"my-*llama* (uploaded, {config.id[-6:]})" in picker.options
    answered(at)
    assert questions[-1]["model"] == str(config.folder)
    for wrong, says in (
        (b"[1, 2]", "not a model config.json"),
        (b"no JSON", "The file is not JSON"),
        (b'{"hidden_size": 64}', "not a model config.json"),
        (b" " * 1_000_001, "1,000,001 bytes"),
    ):
        field = at.file_uploader(key="memory.upload")
        field.upload("config.json", wrong, "application/json").run()
        assert says in at.error[0].value.replace("\\", "")
    assert uploaded_configs.uploaded() == [config], "what is no config is not stored"


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (CONFIG, "llama, 2 layers, width 64"),
        (CONFIG | {"_name_or_path": "org/Base-7B"}, "Base-7B"),
        ({"model_type": "gpt2"}, "gpt2"),
    ],
)
def test_an_uploaded_config_is_known_by_what_it_says(config: dict[str, Any], name: str) -> None:
    assert uploaded_configs.keep(json.dumps(config).encode(), "config (1).json").name == name


@pytest.mark.parametrize("config_id", ["uploaded:0123456789abcdef", "uploaded:..", "uploaded:"])
def test_an_uploaded_config_that_is_not_there(
    open_page: Page, questions: list[dict[str, Any]], config_id: str
) -> None:
    for outside in (paths.home() / "uploads", paths.home() / "uploads" / "configs"):
        outside.mkdir(parents=True)
        (outside / "config.json").write_text("{}")  # neither is an upload
    at = open_page("memory", model=config_id)
    assert "There is no uploaded config" in at.error[0].value.replace("\\", "")
    assert questions == []


def test_a_model_that_is_not_there(open_page: Page) -> None:
    open_page("memory", model="config:no-such-model")
    job = next(reversed(method_estimates._jobs._entries.values()))
    deadline = time.monotonic() + 30
    while not job.is_complete and time.monotonic() < deadline:
        time.sleep(0.1)
    assert job.rows() == []
    assert all("no shipped config 'no-such-model'" in why for why in job.refused.values())


def test_measured_runs_stand_next_to_their_estimates(lab_home: Path) -> None:
    assert memory_view.measured_runs() == []
    for number, (device, measured, is_bound) in enumerate(
        (("cuda", 10e9, False), ("cpu", 7e9, True)), 1
    ):
        run = RunDir(paths.runs() / f"20261122-10153{number}-lora-k3f9")
        run.path.mkdir(parents=True)
        write_json(run.spec, {"v": 1, "name": f"run {number}", "method": {"name": "lora"}})
        forecast = {"peak_bytes": 10_030_000_000, "device": device, "is_bound": is_bound}
        write_json(run.estimate, forecast)
        write_json(run.result, {"state": "done", "summary": {"peak_bytes": int(measured)}})
    bound, exact = memory_view.measured_runs()
    assert (exact["device"], exact["estimate against measured"]) == ("GPU", "+0.3 %")
    assert (bound["device"], bound["measured (GB)"]) == ("CPU", 7.0)
    assert bound["estimate against measured"] == "within the margin"


def test_uploaded_configs_are_listed_by_name(lab_home: Path) -> None:
    for number, name in enumerate(("b", "C", "a")):
        content = json.dumps(CONFIG | {"number": number}).encode()
        uploaded_configs.keep(content, f"{name}.json")
    assert [config.name for config in uploaded_configs.uploaded()] == ["a", "b", "C"]
