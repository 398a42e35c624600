"""What each contestant of a race would take, checked in the background while the form is filled in,
and the bar with all of them together."""

from __future__ import annotations

import json
from typing import Any

import streamlit as st

from lab import formatting
from lab.checked_run import CheckedRun
from lab.compare import race_start
from lab.errors import LabError, SpecError
from lab.preflight.client import planner
from lab.recent import Recent
from lab.runs import colours as run_colours
from lab.ui import colours, links, race_form, submit, waiting
from lab.ui.fragments import fragment
from lab.ui.markdown_safety import escape_markdown
from lab.ui.waiting import BackgroundJob, failure, wait

STARTING, ERROR = "race.starting", "race.error"


class ContestantCheck(BackgroundJob):
    """The run that a contestant would start, or why it cannot."""

    def __init__(self, spec: dict[str, Any]) -> None:
        super().__init__()
        self.spec = spec
        self.checked: CheckedRun | None = None

    @property
    def problem(self) -> str:
        if isinstance(self.error, SpecError):
            return " ".join(problem.message for problem in self.error.problems)
        return waiting.in_words(self.error) if self.error else ""

    def ask(self) -> None:
        self.checked = planner.check(self.spec)


_checks: Recent[str, ContestantCheck] = Recent(48)


def check_of(spec: dict[str, Any]) -> ContestantCheck:
    """The check of `spec` as far as it is; asked at the first look."""
    key = json.dumps({**spec, "name": ""}, sort_keys=True, default=str)
    return _checks.get_or(
        key, lambda: ContestantCheck(spec).start(), is_stale=lambda job: job.is_stale
    )


def rows() -> dict[str, ContestantCheck]:
    """The table of contestants; the check of each by its name, none while the form has problems."""
    st.caption("CONTESTANTS")
    has_problems = bool(race_form.problems())
    specs = {} if has_problems else race_form.specs()[0]
    checks = {name: check_of(spec) for name, spec in specs.items()}
    names = [each.name for each in race_form.contestants()]
    ids: list[int] = list(st.session_state[race_form.ROWS])
    next_colours = run_colours.next_colours(len(ids))
    for row, name, colour in zip(ids, names, next_colours, strict=True):
        with st.container(border=True):
            line = st.container(horizontal=True, vertical_alignment="center")
            line.markdown(f"{colours.dot(colour)} **{escape_markdown(name)}**", width="content")
            check = checks.get(name)
            if check is not None:
                check.look(f"race {row}")
            with line.container(width="stretch"):
                _cost(check, row)
            line.button(
                ":material/close:", key=f"race.remove.{row}",
                help=f"Remove {escape_markdown(name)}", type="tertiary", disabled=len(ids) <= 2,
                on_click=race_form.remove_row, args=(row,),
            )  # fmt: skip
            race_form.row_fields(row)
    st.button(
        "Add a method", key="race.add", icon=":material/add:", on_click=race_form.add_row,
        disabled=len(ids) >= 12,
    )  # fmt: skip
    _poll(checks)
    return checks


def _cost(check: ContestantCheck | None, row: int) -> None:
    """Time, memory, size and whether it fits."""
    if check is None:
        st.markdown(":gray[–]")
    elif not check.is_complete:
        st.markdown(":gray[Checking …]")
    elif check.error is not None and not isinstance(check.error, SpecError):
        failure(check, f"race.check.{row}", "left out: ")
    elif check.checked is None:
        st.markdown(f":red[:material/error: left out: {escape_markdown(check.problem)}]")
    else:
        st.markdown(" · ".join(cost_words(check.checked)) + " · :material/check: fits")


def cost_words(checked: CheckedRun) -> list[str]:
    """ "4 min 10 s (3 min 00 s of training)", "2.2 GB", "9.8 MB": time and memory of a run, size of
    its result."""
    forecast = checked.forecast
    words = []
    if forecast.runtime is not None:
        whole, training = map(
            formatting.duration, (forecast.runtime.whole_s, forecast.runtime.seconds)
        )
        words.append(whole if whole == training else f"{whole} ({training} of training)")
    words.append(f"{forecast.memory.needed_bytes / 1e9:.1f} GB")
    if forecast.disk is not None:
        words.append(formatting.size(forecast.disk.artifact))
    return words


def _poll(checks: dict[str, ContestantCheck]) -> None:
    """Draw the page again when another check has ended."""
    open_checks = sum(not check.is_complete for check in checks.values())

    @fragment(run_every=1.0 if open_checks else None)
    def look() -> None:
        for index, check in enumerate(checks.values()):
            check.look(f"race {index} poll")
        if open_checks != sum(not check.is_complete for check in checks.values()):
            st.rerun()

    look()


def bar(checks: dict[str, ContestantCheck]) -> None:
    """What all runs together would take, what is wrong, and Start."""
    problems = race_form.problems()
    fitting = {name: check.checked for name, check in checks.items() if check.checked is not None}
    is_checking = any(not check.is_complete for check in checks.values())
    if not problems and not is_checking and len(fitting) < 2:
        problems = ["Fewer than two contestants can start; each row says why."]
    is_starting = bool(st.session_state.get(STARTING))
    with st.bottom:
        row = st.container(
            horizontal=True, horizontal_alignment="distribute", vertical_alignment="center"
        )
        with row.container(width="stretch", gap="xsmall"):
            _words(problems, fitting, is_checking, len(checks))
        row.button(
            "Starting …" if is_starting else "Start the race", key="race.start", type="primary",
            icon=":material/play_arrow:", on_click=_begin,
            disabled=is_starting or bool(problems) or is_checking,
        )  # fmt: skip
        if is_starting:
            _start(checks)


def _begin() -> None:
    st.session_state[STARTING] = True


def _words(
    problems: list[str], fitting: dict[str, CheckedRun], is_checking: bool, total: int
) -> None:
    if problems:
        st.markdown(f":red[:material/error: {escape_markdown(problems[0])}]")
        return
    error = st.session_state.get(ERROR)
    if error:
        st.markdown(f":red[:material/error: {escape_markdown(error)}]")
        return
    seeds, rungs = int(st.session_state[race_form.SEEDS]), race_form.rungs()
    if is_checking:
        runs = race_start.count_runs(total, seeds, rungs)
        checking = f":gray[checking {total - len(fitting)} of {total} …]"
        st.markdown(f"**{formatting.quantity(runs, 'run')}** · {checking}")
        return
    planned = race_start.plan(fitting, seeds, rungs)
    left_out = total - len(fitting)
    st.markdown(
        in_words(race_start.forecast(planned))
        + (f" · {left_out} left out, its row says why" if left_out else "")
    )
    unfair = race_start.unfairness(race_form.budget(), fitting)
    if unfair:
        st.caption(escape_markdown(unfair))
    elif rungs:
        st.caption(
            f"{rungs} short runs per contestant at {100 * race_start.PROBE_SHARE:.0f} % of the "
            "budget, the best continues; the default is run too."
        )


def in_words(total: race_start.RaceForecast) -> str:
    """ "9 runs · about 1 h 12 min · 3.2 GB at most · 2.5 GB of disk" as Markdown."""
    parts = [f"**{formatting.quantity(total.runs, 'run')}**"]
    if total.seconds is not None:
        about = "" if total.is_measured else "about "
        parts.append(f":material/timer: {about}{formatting.duration(total.seconds)}")
    parts.append(f":material/memory_alt: {total.peak_bytes / 1e9:.1f} GB at most")
    parts.append(f":material/hard_drive: {formatting.size(total.disk_bytes)} of disk")
    return " · ".join(parts)


def _start(checks: dict[str, ContestantCheck]) -> None:
    """Check once more what fits, and queue it: what lies on the disk may have changed."""
    st.session_state[STARTING] = False  # a run of the page that is given up leaves it usable
    st.session_state[ERROR] = ""
    ticket = submit.ticket()
    left_out = [
        f"{name} is left out: {check.problem}"
        for name, check in checks.items()
        if check.checked is None
    ]
    specs, notes = race_form.specs()
    specs = {name: spec for name, spec in specs.items() if checks[name].checked is not None}
    seeds, rungs = int(st.session_state[race_form.SEEDS]), race_form.rungs()
    try:
        race_id = race_start.started_by_ticket(ticket)
        if race_id is None:
            planned = wait(
                "Checking the model, the data and the settings …",
                lambda: race_start.check(specs, seeds, rungs),
            )
            race_id, _ = race_start.start(planned, race_form.terms(left_out, notes, ticket))
    except LabError as error:
        st.session_state[ERROR] = str(error)
        st.rerun()
    race_form.clear()
    submit.renew()
    links.switch("race", {"race": str(race_id)})
