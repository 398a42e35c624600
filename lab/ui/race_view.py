"""A race that was started: how far it is, its curves so far, and its verdict in the end."""

from __future__ import annotations

import numpy as np
import streamlit as st

from lab import formatting, paths
from lab.compare import evidence, race_file, race_outcome, race_scores
from lab.compare.claim_verdicts import claim_verdicts
from lab.compare.contestants import MAX_SHOWN
from lab.compare.finishers import Finisher, finishers
from lab.compare.race_file import PROBE, TUNED, Race, RunCell
from lab.errors import LabError
from lab.runs import ladder, queue
from lab.runs.metric_series import series_of
from lab.ui import chart_style, colours, compare_export, links, race_form, run_state
from lab.ui.chart_style import End, View, figure, finish, is_dark, level, line
from lab.ui.fragments import fragment
from lab.ui.markdown_safety import escape_markdown, run_action

AXES = {"tokens": "tokens", "seconds": "seconds", "flops": "flops", "steps": "step"}
VERDICT_ICONS = {
    "confirmed": "check_circle",
    "off": "cancel",
    "depends": "alt_route",
    "open": "help",
}


def show(race: Race) -> None:
    """Drawn again every two seconds while runs go on."""
    goes_on = not race_file.has_ended(race_file.cells(race))
    if race.question:
        st.markdown(escape_markdown(race.question))
    fragment(_state, run_every=2.0 if goes_on else None)(race, goes_on)
    if not goes_on:
        _verdict(race)
    fragment(_curves, run_every=5.0 if goes_on else None)(race)
    for text in (*race.left_out, *race.notes):
        st.caption(f":material/info: {escape_markdown(text)}")


def _state(race: Race, went_on: bool) -> None:
    now = race_file.cells(race)
    if went_on and race_file.has_ended(now):
        st.rerun()  # the whole page, as it is at rest
    if went_on:
        st.progress(fraction(now), progress_words(race, now))
        _stop(now)
    st.table(table(race, now), border="horizontal", hide_index=True)
    for cell in now:
        if cell.status.state in ("failed", "crashed"):
            message = f"{cell.status.message} {cell.status.hint}".strip()
            st.markdown(
                f":red[:material/error: {escape_markdown(cell.race_run.contestant)}, seed "
                f"{cell.race_run.seed}: {escape_markdown(message)}]"
            )


def fraction(now: list[RunCell]) -> float:
    """Of all runs, each of the same weight."""
    done = sum(1.0 if cell.status.has_ended else cell.status.fraction for cell in now)
    return done / len(now) if now else 1.0


def progress_words(race: Race, now: list[RunCell]) -> str:
    """ "4 of 9 done, about 40 min left"."""
    ended = sum(cell.status.has_ended for cell in now)
    left = race_file.seconds_left(race, now)
    words = f"{ended} of {len(now)} done"
    return f"{words}, about {formatting.duration(left)} left" if left is not None else words


def _stop(now: list[RunCell]) -> None:
    waiting = [cell for cell in now if cell.status.state == "queued"]
    if not waiting:
        return
    waiting_runs = formatting.quantity(len(waiting), "run")
    with st.popover("Stop after this run", icon=":material/stop:", key="race.stop"):
        st.markdown(
            f"{waiting_runs} waiting in the queue will be removed; the run in training continues."
        )
        if st.button(f"Remove {waiting_runs} from the queue", key="race.stop.confirm"):
            run_action(lambda: stop_waiting(now))


def stop_waiting(now: list[RunCell]) -> None:
    """Take what has not begun out of the queue."""
    for cell in now:
        if cell.status.state == "queued":
            queue.withdraw(paths.run_dir(cell.race_run.run))


def table(race: Race, now: list[RunCell]) -> dict[str, list[str]]:
    """Columns of Markdown: a row a contestant and role, a cell a seed; the probes of a ladder in
    one cell."""
    rates = race_file.chosen_rates(race)
    seeds = list(dict.fromkeys(cell.race_run.seed for cell in now))
    columns: dict[str, list[str]] = {"Contestant": []}
    if race.ladder:
        columns["Learning rates tried"] = []
    columns |= {f"Seed {seed}": [] for seed in seeds}
    for contestant in race.contestants:
        mine = [cell for cell in now if cell.race_run.contestant == contestant.name]
        probes = [cell for cell in mine if cell.race_run.role == PROBE]
        for role in dict.fromkeys(cell.race_run.role for cell in mine if cell not in probes):
            runs = {cell.race_run.seed: cell for cell in mine if cell.race_run.role == role}
            columns["Contestant"].append(_name(contestant.name, role, runs, rates))
            if race.ladder:
                tried = tried_words(probes, runs) if role == TUNED else "–"
                columns["Learning rates tried"].append(tried)
            for seed in seeds:
                text = cell_words(runs[seed]) if seed in runs else "–"
                columns[f"Seed {seed}"].append(text)
    return columns


def tried_words(probes: list[RunCell], tuned: dict[int, RunCell]) -> str:
    """ "6e-5 2.41 · 2e-4 **2.33** · 6e-4 waiting": each rate with its loss, the best in bold."""
    try:
        run = paths.run_dir(next(iter(tuned.values())).race_run.run)
    except LabError:
        return "–"
    listed = ladder.ladder_of(run)
    rates = listed.probes if listed is not None else {}
    losses = [cell.loss for cell in probes if cell.loss is not None]
    parts = []
    for cell in probes:
        words = cell_words(cell) if cell.loss is None else f"{cell.loss:.2f}"
        if losses and cell.loss == min(losses):
            words = f"**{words}**"
        parts.append(f"{formatting.rate(rates.get(cell.race_run.run, 0.0))} {words}")
    return " · ".join(parts)


def _name(name: str, role: str, runs: dict[int, RunCell], rates: dict[str, float]) -> str:
    text = escape_markdown(name)
    if role == TUNED:
        rate = rates.get(name)
        text += f", best rate ({formatting.rate(rate)})" if rate else ", best rate"
    return f"{_dot(next(iter(runs.values())))} {text}"


def _dot(cell: RunCell) -> str:
    try:
        return colours.dot(colours.colour_of(paths.run_dir(cell.race_run.run)))
    except LabError:
        return colours.BASE_DOT


def cell_words(cell: RunCell) -> str:
    """ "✓ 2.41", "● 36 of 60", "waiting", as Markdown."""
    state = cell.status.state
    if cell.is_needless:
        return ":gray[= default]"
    if state == "done":
        loss = "done" if cell.loss is None else f"{cell.loss:.2f}"
        return f":material/check: {loss}"
    if state == "queued":
        return ":gray[waiting]"
    if cell.status.is_active:
        if cell.status.total:
            return f":material/play_circle: {cell.status.done:,.0f} of {cell.status.total:,.0f}"
        return f":material/play_circle: {escape_markdown(cell.status.phase or state)}"
    return f"{run_state.icon(state)} {escape_markdown(state)}"


def _curves(race: Race) -> None:
    """The evaluation losses so far over the budget, one line a run; the base is dotted."""
    axis = AXES[race.budget.axis] if race.budget else "step"
    view = View(by=axis, dark=is_dark())
    unit = race.budget.axis if race.budget else "steps"
    chart = figure(view, x="FLOPs" if unit == "flops" else unit, y="evaluation loss", height=300)
    ends: list[End] = []
    base: float | None = None
    for finisher in race_file.compared_runs(race):
        series = series_of(finisher)
        evaluation = series.evaluation
        if evaluation.base is not None:
            base = float(evaluation.base["eval/loss"])
        if not evaluation.length:
            continue
        x, y = evaluation.get(axis), evaluation.get("eval/loss")
        if evaluation.base is not None:
            x, y = np.append(0.0, x), np.append(float(evaluation.base["eval/loss"]), y)
        colour = colours.hex_of_run(finisher, view.dark)
        name = _contestant_of(race, finisher.id)
        line(chart, x, y, name, colour, dots=len(x) < 3)
        ends.append(End(name, float(y[-1]), colour))
    if not ends:
        return
    if base is not None:
        level(chart, base, view.quiet)
        ends.append(End("base", base, view.quiet))
    with st.container(border=True):
        st.caption("EVALUATION LOSS")
        chart_style.show(
            finish(chart, ends), "race.curves",
            f"Evaluation losses of {formatting.quantity(len(ends), 'run')} of the race over {unit}",
        )  # fmt: skip


def _contestant_of(race: Race, run_id: str) -> str:
    each = next(each for each in race.runs if each.run == run_id)
    seed = f" · {each.seed}" if race.seeds > 1 else ""
    return f"{each.contestant}{' best' if each.role == TUNED else ''}{seed}"


def _verdict(race: Race) -> None:
    """VERDICT: what the comparison says, what of the claims, and where to go on."""
    race_outcome.keep_ended()
    racing = finishers(race)
    with st.container(border=True):
        st.caption("VERDICT")
        if not racing:
            st.markdown("No run finished, so there is nothing to compare.")
        else:
            result, terms = race_outcome.race_verdict(racing)
            st.markdown(f"### {escape_markdown(result.headline)}")
            if result.detail:
                st.markdown(escape_markdown(result.detail))
            badges = " ".join(f":gray-badge[{escape_markdown(b.text)}]" for b in result.badges)
            if badges:
                st.markdown(badges)
            for remark in terms.remarks if not race.ladder else ():
                st.caption(escape_markdown(remark))
        _claims(race, racing)
        _actions(race, racing)


def _claims(race: Race, racing: list[Finisher]) -> None:
    tests = race_outcome.tests_of(race)
    verdicts = claim_verdicts(tests, racing, race_scores.scores_of(race))
    for claim, verdict in verdicts.items():
        says = " ".join(test.sentence for test in tests if test.claim == claim)
        icon = VERDICT_ICONS[verdict.verdict]
        with st.container(horizontal=True, vertical_alignment="center", gap="small"):
            st.markdown(
                f":material/{icon}: **{escape_markdown(claim)} {verdict.verdict}** · "
                f"{escape_markdown(says)}  \n:gray[{escape_markdown(verdict.sentence)}]",
                width="stretch",
            )
            st.page_link(
                links.page("claims"), label=f"Claim {claim}", icon=":material/fact_check:",
                query_params={"id": claim}, width="content",
            )  # fmt: skip


def _actions(race: Race, racing: list[Finisher]) -> None:
    runs = race_file.compared_runs(race)
    with st.container(horizontal=True):
        if len(runs) > 1 and st.button(
            "Open the comparison", key="race.compare", type="primary",
            icon=":material/compare_arrows:",
        ):  # fmt: skip
            links.open_comparison([run.id for run in runs])
        shown = [finisher.contestant for finisher in racing][:MAX_SHOWN]
        if shown:
            st.download_button(
                "Export report", lambda: compare_export.html_report(shown), f"{race.id}.html",
                "text/html", key="race.report", icon=":material/download:", on_click="ignore",
                help="One file with all charts and tables, which opens without a network.",
            )  # fmt: skip
        if st.button("Repeat with …", key="race.repeat", icon=":material/replay:"):
            race_form.fill_from(race)
            links.switch("race")
        file = evidence.folder() / f"{race_outcome.evidence_id(race)}.json"
        if file.is_file():
            st.download_button(
                "Evidence (JSON)", file.read_bytes(), file_name=file.name,
                mime="application/json", key="race.evidence", icon=":material/download:",
            )  # fmt: skip
