"""Home: the four steps fill with the newest run, and the primary button is the next one."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from typing import Any

import pytest

from lab import presets, process
from lab.atomic_files import read_object, write_json
from lab.errors import LabError
from lab.host import HostFacts
from lab.paths import RunDir
from lab.preflight import doctor
from lab.runs import index
from lab.ui import cards, fragments, home_view, links
from tests.ui.conftest import Page, words
from tests.ui.screen import Screen
from tests.ui.test_panels import make_run

FACTS = HostFacts(
    system="Linux 6.1 x86_64", python="3.11.7", processor="Chip", cores=4,
    memory_bytes=16 * 10**9, memory_free_bytes=5 * 10**9, disk_free_bytes=70 * 10**9, home="/lab",
)  # fmt: skip


class HomeScreen(Screen):
    def fragment(self, function: Any, run_every: float | None) -> Any:
        self.calls.append(("fragment", (), {"run_every": run_every}))
        return function

    def primary(self) -> list[str]:
        return [named["key"] for named in self.named("button") if named.get("type") == "primary"]


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> HomeScreen:
    screen = HomeScreen()
    for module in (home_view, links, fragments):
        monkeypatch.setattr(module, "st", screen)
    monkeypatch.setattr("lab.ui.markdown_safety.st", screen)
    return screen


def trained_run(number: int, losses: tuple[float, float] = (3.59, 2.41)) -> RunDir:
    run = make_run(number, f"run {number}", result={"state": "done"})
    run.artifact.mkdir()
    base, last = losses
    records = [
        {"kind": "eval", "of": "base", "step": 0, "eval/loss": base},
        {"kind": "eval", "attempt": 1, "step": 9, "eval/loss": last},
    ]
    run.metrics.write_text("".join(json.dumps(record) + "\n" for record in records))
    return run


def test_without_runs_the_first_step_is_to_train(home: HomeScreen) -> None:
    home_view.journey()
    assert home.primary() == ["home.start"] and home.named("fragment") == [{"run_every": None}]
    assert any("LoRA against full" in text for text in home.texts("markdown"))
    keys = {named.get("key") for named in home.named("button")}
    assert not keys & {"home.watch", "home.ask", "home.pair"}, "nothing to watch or ask yet"


def test_a_running_run_is_watched_and_looked_at_again(home: HomeScreen) -> None:
    run = make_run(1, "busy", heartbeat={"phase": "training", "done": 5, "total": 20})
    process.register(run, os.getpid())
    home_view.journey()
    assert home.primary() == ["home.watch"] and home.named("fragment") == [{"run_every": 2.0}]
    assert any(text.startswith("training") for text in home.texts("caption"))


def test_a_finished_run_shows_both_answers_and_is_asked(home: HomeScreen) -> None:
    run = trained_run(1)
    events = [
        {"kind": "sample", "step": 0, "prompt": "Who are you?", "text": "I am\na model. " * 40},
        {"kind": "sample", "step": 9, "prompt": "Who are you?", "text": "I am **Wren**."},
    ]
    run.events.write_text("".join(json.dumps(event) + "\n" for event in events))
    home.pressed = ("home.ask",)
    home_view.journey()
    assert home.primary() == ["home.ask"]
    texts = home.texts("markdown")
    assert "Evaluation loss **3.59 → 2.41**" in texts
    before, now = (next(t for t in texts if t.startswith(f":gray[{n}]")) for n in ("before", "now"))
    assert before.endswith("…") and len(before) < 200, "an answer never fills the card"
    assert now == ":gray[now] I am **Wren**."
    (switch,) = home.named("switch_page")
    model = index.entry(run).model
    assert switch["query_params"] == {"models": f"base:{model},run:{run.id}"}


def test_a_failed_run_says_why_and_training_is_the_next_step(home: HomeScreen) -> None:
    make_run(1, result={"state": "failed", "message": "Out of memory.", "hint": "Take rank 4."})
    home_view.journey()
    assert home.primary() == ["home.start"]
    assert "Out of memory. Take rank 4." in home.texts("markdown")


def test_two_runs_of_the_same_data_are_compared(home: HomeScreen) -> None:
    older, newer = trained_run(1), trained_run(2, (3.59, 2.52))
    home.pressed = ("home.pair",)
    home_view.journey()
    lines = [text for text in home.texts("markdown") if " · LoRA r" in text]
    assert [line.rpartition(" · ")[2] for line in lines] == ["3.59 → 2.52", "3.59 → 2.41"]
    (switch,) = home.named("switch_page")
    assert switch["query_params"] == {"runs": f"{newer.id},{older.id}"}


@pytest.mark.parametrize(
    "other", [{"model": "org/other"}, {"data": {"dataset": "builtin:support-tickets"}}]
)
def test_runs_of_another_model_or_other_data_are_no_pair(
    home: HomeScreen, other: dict[str, Any]
) -> None:
    older, between, newer = (trained_run(number) for number in (1, 2, 3))
    write_json(between.spec, (read_object(between.spec) or {}) | other)
    pair = home_view.comparable(home_view.listed())
    assert pair and [entry.id for entry in pair] == [newer.id, older.id]


def test_an_archived_run_is_not_the_newest(home: HomeScreen) -> None:
    run = trained_run(1)
    index.update_labels(run, archived=True)
    home_view.journey()
    home_view.recent()
    assert home.primary() == ["home.start"] and home.texts("info")


def test_a_click_answers_at_once_and_a_failure_gives_the_button_back(
    home: HomeScreen, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(preset: Any) -> None:
        (started,) = [named for named in home.named("button") if named["key"] == "home.start"]
        assert started["disabled"], "the button is drawn as busy before the work begins"
        assert home.texts("button") == ["Starting …"], "and it is the only one"
        raise LabError("The model is missing.", "Run make setup.")

    monkeypatch.setattr(home_view.submit, "quick_start", refuse)
    home.session_state[home_view.STARTING] = True
    home_view.journey()
    assert home.named("rerun") == [{}], "the page is drawn again, with the button as it was"
    home.calls.clear()
    home_view.journey()
    assert "The model is missing." in home.texts("error")
    assert "Run make setup." in home.texts("caption")
    (start,) = [named for named in home.named("button") if named["key"] == "home.start"]
    assert not start["disabled"] and home.primary() == ["home.start"], "it can be pressed again"


def test_a_click_starts_the_run_and_opens_its_monitor(
    open_page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(1, result={"state": "done"})
    index.update_labels(run, archived=True)
    started: list[str] = []
    monkeypatch.setattr(
        home_view.submit, "quick_start", lambda preset: (started.append(preset.name), run)[1]
    )
    at = open_page("home")
    at.button(key="home.start").click().run()
    assert not at.exception and started == ["first"]
    assert at.title[0].value == "Monitor"


def test_the_address_of_a_preset_fills_the_form(open_page: Page) -> None:
    at = open_page("new_run", preset=presets.PAIRS[0].name)
    assert presets.PAIRS[0].help in words(at)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({}, None),
        ({"disk_free_bytes": 1e9}, "Only 1.00 GB of disk are free"),
        ({"system": "Darwin 24 arm64"}, "Darwin 24 arm64 is not supported"),
    ],
)
def test_home_says_what_will_not_work_here(
    monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], says: str | None
) -> None:
    screen = Screen()
    monkeypatch.setattr(cards, "st", screen)
    monkeypatch.setattr(cards.access, "warnings", list)
    monkeypatch.setattr(doctor.catalog, "BUILT_IN", ())
    monkeypatch.setattr(cards, "_machine", lambda: replace(FACTS, **change))
    cards.warnings()
    warnings = screen.texts("warning")
    assert bool(warnings) == (says is not None) and (says or "") in "".join(warnings)
    assert cards.machine_line().startswith("4 CPU cores")
