"""A form starts one run, a changed form another one, and a wrong form none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from lab.checked_run import CheckedRun
from lab.errors import Problem, SpecError
from lab.paths import all_runs
from lab.presets import PRESETS
from lab.runs import actions, index, submissions
from lab.spec import RunSpec
from lab.ui import submit


def page() -> None:
    """What the page of the form does with a click."""
    import streamlit as st

    from lab.ui import submit

    ticket = submit.ticket()
    wanted = st.session_state.get("wanted")
    if wanted is not None:
        started = submit.start(wanted, ticket)
        st.session_state["started"] = started.id if started else None


@pytest.fixture
def form(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str | None]:
    """`form(spec)`: submit the same browser tab's form with that content; the run's id."""

    def check(spec: dict[str, Any]) -> CheckedRun:
        if spec.get("name") == "wrong":
            raise SpecError([Problem("name", "is wrong.")])
        return CheckedRun(RunSpec(name=spec.get("name", "")), spec)

    monkeypatch.setattr(submit.planner, "check", check)
    monkeypatch.setattr(actions, "submit", lambda run: None)
    at = AppTest.from_function(page)
    at.run()

    def send(spec: dict[str, Any]) -> str | None:
        at.session_state["wanted"] = spec
        at.run()
        assert not at.exception, at.exception
        send.at = at  # type: ignore[attr-defined]
        started: str | None = at.session_state["started"]
        return started

    send.at = at  # type: ignore[attr-defined]
    return send


def test_the_same_form_is_the_same_run_and_a_changed_form_another(form: Any) -> None:
    first = form({"name": "one"})
    assert form({"name": "one"}) == first, "A second click."
    second = form({"name": "two"})
    assert second != first, "What was changed after the start is a run of its own."
    assert form({"name": "two"}) == second, "A second click on the changed form."
    assert len(all_runs()) == 2
    stored = {run.id: run.spec.read_text() for run in all_runs()}
    assert '"two"' in stored[str(second)] and '"one"' in stored[str(first)]
    form({"name": "one"})
    assert {index.entry(run).name for run in all_runs()} == {"one", "two", "one 2"}


def draft_of(at: AppTest) -> str:
    value: Any = at.query_params["draft"]
    return str(value if isinstance(value, str) else value[0])


def test_the_ticket_stands_in_the_url_so_that_a_reload_keeps_it(form: Any) -> None:
    at = form.at
    ticket = draft_of(at)
    at.run()
    assert draft_of(at) == ticket
    first = form({"name": "one"})
    again = AppTest.from_function(page)
    again.query_params["draft"] = ticket
    again.session_state["wanted"] = {"name": "one"}
    again.run()
    assert again.session_state["started"] == first, "The reloaded form has its run already."
    form({"name": "two"})
    assert draft_of(at) != ticket, "The changed form has a ticket of its own."
    strange = AppTest.from_function(page)
    strange.query_params["draft"] = "../../x"
    strange.run()
    assert submissions.TICKET.fullmatch(draft_of(strange))


def test_problems_are_kept_for_their_fields_until_the_form_is_right(form: Any) -> None:
    problems = "new.problems"
    assert form({"name": "wrong"}) is None and all_runs() == []
    assert form.at.session_state[problems] == {"name": "is wrong."}
    assert form({"name": "right"}) is not None
    assert form.at.session_state[problems] == {}


def quick() -> None:
    import streamlit as st

    from lab.presets import PRESETS
    from lab.ui import submit

    st.session_state["started"] = submit.quick_start(PRESETS[0]).id


def test_the_quick_start_is_one_run_however_often_it_is_clicked(form: Any) -> None:
    at = AppTest.from_function(quick)
    at.run()
    first = at.session_state["started"]
    at.run()
    assert not at.exception and at.session_state["started"] == first
    assert len(all_runs()) == 1 and PRESETS
