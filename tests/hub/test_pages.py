"""Pages with ids of the Hub typed into them: nothing but configs and headers is fetched, and what
is offered is what was asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import streamlit

from lab import formatting, methods
from lab.errors import SpecError
from lab.models import catalog, hub
from lab.preflight import worker
from lab.preflight.client import planner
from lab.recent import Recent
from lab.spec import RunSpec
from lab.ui import adapter_field, estimate_panel, method_estimates, new_run_view
from lab.ui.waiting import BackgroundJob
from tests.hub.conftest import NAME, save_adapter
from tests.hub.stand_in import StandIn
from tests.hub.test_unasked import METADATA, SET, bodies, both
from tests.ui.conftest import Page, open_page, words

__all__ = ["both", "open_page"]  # fixtures
OTHER, ADAPTER = "org/other", "org/adapter"


@pytest.fixture(autouse=True)
def answers_here(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The planner's answers are made in this process; which were asked for."""
    streamlit.config.set_option("client.showErrorDetails", "full")
    streamlit.config.set_option("runner.enforceSerializableSessionState", False)
    monkeypatch.setattr("lab.runs.actions.want_warm_worker", lambda: None)
    kinds: list[str] = []

    def ask(request: dict[str, Any], timeout: float = 0) -> dict[str, Any]:
        kinds.append(request["ask"])
        if request["ask"] == "limits":  # varies settings in memory, for which a test has no time
            return {"problems": [{"field": "model", "message": "is not asked for here."}]}
        try:
            return worker.answer_to(request)
        except SpecError as error:
            return {"problems": [problem.to_json() for problem in error.problems]}

    monkeypatch.setattr(planner, "ask", ask)
    monkeypatch.setattr(planner, "warm", lambda: None)
    for module in (estimate_panel, method_estimates, adapter_field):
        monkeypatch.setattr(module, "_jobs", Recent(8))
    return kinds


def finished(jobs: Recent[str, Any], count: int = 1) -> BackgroundJob:
    """The newest job, once it has all its answers."""
    assert len(jobs) >= count, "the page asks"
    job: BackgroundJob = next(reversed(jobs._entries.values()))
    job.thread.join(60)
    assert job.is_complete and job.error is None, job.error
    return job


def test_new_run_fetches_nothing_but_configs(
    both: StandIn,
    micro_model: Path,
    open_page: Page,
    answers_here: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    both.commit(OTHER, micro_model)
    spec = RunSpec.from_json({"model": NAME, "data": {"dataset": SET, "max_length": 64}})
    monkeypatch.setattr(new_run_view, "_spec_of", lambda changes: spec)
    at = open_page("new_run")
    finished(estimate_panel._jobs)
    at.run()
    assert not at.exception
    size = hub.download_size(catalog.resolve(NAME))
    assert size is not None and size.bytes > 10_000
    assert f"**{formatting.size(size.bytes)}** to download first" in words(at)
    at.session_state["new.model"] = OTHER  # as the picker does
    at.run()
    finished(estimate_panel._jobs, 2)
    at.run()
    assert not at.exception
    assert both.requests("GET", f"/{OTHER}/"), "the second id was asked for"
    assert bodies(both) <= METADATA, "typing an id downloads nothing"
    assert not both.requests("GET", "datasets"), "an id of a dataset is not asked for at all"
    assert "check" not in answers_here, "only a click checks"


def test_memory_fetches_nothing_but_configs(
    both: StandIn, open_page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = [methods.get("lora"), methods.get("ln_tuning")]
    monkeypatch.setattr(methods, "all_methods", lambda: pair)
    at = open_page("memory", model=NAME, rows="1", length="128")
    job = finished(method_estimates._jobs)
    assert isinstance(job, method_estimates.MethodEstimates)
    at.run()
    assert not at.exception
    assert {row.name for row in job.rows()} == {"lora", "ln_tuning"}, job.refused
    assert all(row.forecast.memory.how.is_exact for row in job.rows()), "the steps were traced"
    assert "config.json" in bodies(both) and bodies(both) <= METADATA


@pytest.fixture
def with_adapter(both: StandIn, micro_model: Path, tmp_path: Path) -> StandIn:
    save_adapter(micro_model, tmp_path / "adapter")
    both.commit(ADAPTER, tmp_path / "adapter")
    return both


def test_chat_adds_an_adapter_of_the_hub_on_its_base(
    with_adapter: StandIn, open_page: Page
) -> None:
    at = open_page("chat")
    at.text_input(key="chat.adapter").set_value(ADAPTER).run()
    assert with_adapter.log == [], "typing an id asks for nothing"
    at.button(key="chat.adapter.find").click().run()
    finished(adapter_field._jobs)
    at.run()
    assert f"LoRA of rank 4 on **{NAME}**" in words(at).replace("\\", "")
    assert "to download" in words(at)
    assert bodies(with_adapter) <= {*METADATA, "adapter_config.json"}
    before = at.session_state["chat.models"]
    at.button(key="chat.adapter.add").click().run()
    assert not at.exception
    assert at.session_state["chat.models"] == [*before, f"base:{NAME}", f"adapter:{ADAPTER}"]
    assert bodies(with_adapter) <= {*METADATA, "adapter_config.json"}, "the question fetches it"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("org/nothing", "org/nothing"),
        (NAME, "is not an adapter"),
        ("what is this", "names no adapter"),
    ],
)
def test_chat_refuses_a_name_that_matches_nothing(
    with_adapter: StandIn, open_page: Page, text: str, message: str
) -> None:
    at = open_page("chat")
    before = at.session_state["chat.models"]
    at.text_input(key="chat.adapter").set_value(text).run()
    at.button(key="chat.adapter.find").click().run()
    next(reversed(adapter_field._jobs._entries.values())).thread.join(30)
    at.run()
    assert not at.exception
    assert message in at.error[0].value.replace("\\", "")
    assert at.session_state["chat.models"] == before
    with pytest.raises(KeyError):
        at.button(key="chat.adapter.add")


def test_an_address_brings_an_adapter_but_no_nonsense(
    with_adapter: StandIn, open_page: Page, tmp_path: Path
) -> None:
    names = (
        f"base:builtin:smollm2-135m-instruct,adapter:{tmp_path / 'adapter'}@builtin:x,adapter:a b"
    )
    at = open_page("chat", models=names)
    assert at.session_state["chat.models"] == names.split(",")[:2]
    assert with_adapter.log == [], [line.path for line in with_adapter.log]
