"""Pages under AppTest, opened through the shell."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import streamlit.config
from streamlit.components.v2 import manifest_scanner
from streamlit.proto.WidgetStates_pb2 import WidgetStates
from streamlit.runtime.state.session_state import SessionState
from streamlit.testing.v1 import AppTest

from lab.paths import ROOT
from lab.ui import estimate_panel, method_estimates
from lab.ui.waiting import BackgroundJob

Page = Callable[..., AppTest]


@pytest.fixture(scope="session", autouse=True)
def packages_scanned_once() -> Iterator[None]:
    """Each run of an AppTest reads the metadata of every installed package in search of components:
    nine tenths of the time of a page."""
    with pytest.MonkeyPatch.context() as patch:
        scan = functools.cache(manifest_scanner.scan_component_manifests)
        patch.setattr(manifest_scanner, "scan_component_manifests", scan)
        yield


@pytest.fixture(autouse=True)
def loud_pages() -> None:
    """Errors in full. AppTest itself keeps functions in the session, so the check for what can
    be serialised is left to the browser stories."""
    streamlit.config.set_option("client.showErrorDetails", "full")
    streamlit.config.set_option("runner.enforceSerializableSessionState", False)


@pytest.fixture(autouse=True)
def no_spare(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages under AppTest start no process but the planner."""
    monkeypatch.setattr("lab.runs.actions.want_warm_worker", lambda: None)


@pytest.fixture
def forecasts() -> None:
    """For a test that reads the forecasts which pages show; others start none."""


@pytest.fixture(autouse=True)
def no_unread_forecast(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The preflight process traces for seconds for the pages of a test that never looks."""

    def abandon(job: BackgroundJob) -> BackgroundJob:
        job.was_abandoned = True  # so that the next test asks anew
        return job

    if "forecasts" not in request.fixturenames:
        for job in (estimate_panel.EstimateJob, method_estimates.MethodEstimates):
            monkeypatch.setattr(job, "start", abandon)


@pytest.fixture
def open_page() -> Page:
    """`open_page("monitor", run=ID)`: the page as a person sees it first."""

    def open_it(name: str, session: dict[str, Any] | None = None, **query: str) -> AppTest:
        at = AppTest.from_file(str(ROOT / "lab" / "ui" / "shell.py"), default_timeout=180)
        for key, value in (session or {}).items():
            at.session_state[key] = value
        for key, value in query.items():
            at.query_params[key] = value
        if name != "home":
            at.switch_page(f"../../pages/{name}.py")
        at.run()
        assert not at.exception, at.exception
        return at

    return open_it


def words(at: AppTest) -> str:
    """Everything that the page says."""
    kinds = ("title", "subheader", "markdown", "caption", "info", "warning", "error", "success")
    return "\n".join(str(element.value) for kind in kinds for element in at.get(kind))


@pytest.fixture
def run_without_answer(monkeypatch: pytest.MonkeyPatch) -> Callable[[AppTest], AppTest]:
    """Run a page again for a browser that has not had the last answer: it sends no values."""
    begin = SessionState.on_script_will_rerun

    def forget(self: SessionState, fresh: WidgetStates | None, **options: Any) -> None:
        begin(self, None if fresh is None else WidgetStates(), **options)

    def run(at: AppTest) -> AppTest:
        with monkeypatch.context() as patch:
            patch.setattr(SessionState, "on_script_will_rerun", forget)
            return at.run()

    return run
