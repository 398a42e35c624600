"""Ready races as cards and in a menu, and the races that were started before."""

from __future__ import annotations

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from lab import formatting
from lab.compare import evidence, race_file, race_start, ready_races
from lab.compare.ready_races import ReadyRace
from lab.ui import links, race_form
from lab.ui.markdown_safety import escape_markdown, plain

RECENT = 20
CARDS = 3


def menus(row: DeltaGenerator, *, is_form: bool) -> None:
    """At the right of the title: ready races, earlier races, and a new one."""
    races = race_file.all_races()[:RECENT]
    if races:
        with row.popover("Earlier races", icon=":material/history:", key="race.earlier"):
            for race in races:
                label = f"{plain(race.title)} · {formatting.when(race.created)}"
                st.page_link(
                    links.page("race"), label=escape_markdown(label),
                    query_params={"race": race.id},
                )  # fmt: skip
    with row.popover("Ready races", icon=":material/flag:", key="race.ready"):
        for ready in ready_races.all_ready():
            if st.button(
                escape_markdown(ready.title), key=f"race.ready.{ready.name}", type="tertiary"
            ):
                _use(ready)
    if not is_form:
        st.session_state.pop("race.error", None)
        row.page_link(links.page("race"), label="New race", icon=":material/add_circle:")


def take_ready() -> None:
    """`?ready=NAME`, once: what a person changes afterwards stays."""
    name = st.query_params.get("ready", "")
    if name:
        del st.query_params["ready"]
        race_form.fill_ready(name)


def _use(ready: ReadyRace) -> None:
    race_form.fill_ready(ready.name)
    links.switch("race")


def ready_cards() -> None:
    """Nothing is chosen yet: three races with what they ask, and one of your own."""
    st.markdown(
        "A race trains several methods on the same base, examples and budget, and says which is "
        "better at what, and how sure that is."
    )
    grid = st.grid(CARDS, min_column_width=270, gap="small", border=True)
    for ready in ready_races.all_ready()[:CARDS]:
        with grid.cell():
            st.markdown(f"**{escape_markdown(ready.title)}**")
            st.markdown(escape_markdown(ready.question))
            st.caption(escape_markdown(facts(ready)))
            if st.button("Use this race", key=f"race.card.{ready.name}"):
                _use(ready)
    st.button(
        "Set up a race of your own", key="race.own", type="primary", icon=":material/tune:",
        on_click=race_form.fill_own,
    )  # fmt: skip


def facts(ready: ReadyRace) -> str:
    """ "6 runs · 6,000 tokens each · tests C14 · measured with 24,000 tokens in 10 min on …"."""
    runs = race_start.count_runs(len(ready.contestants), ready.seeds, ready.ladder)
    axis, _, amount = ready.budget.partition("=")
    parts = [formatting.quantity(runs, "run"), f"{formatting.budget(float(amount), axis)} each"]
    if ready.claims:
        parts.append(f"tests {', '.join(ready.claims)}")
    known = next((each for each in evidence.all_evidence() if each.id == ready.name), None)
    if known is not None:
        machine = known.machine.partition(",")[0]
        seeds = max(len(each.seeds) for each in known.contestants)
        parts.append(
            f"measured with {known.budget} and {formatting.quantity(seeds, 'seed')} in "
            f"{known.minutes:.0f} min on {machine}"
        )
    return " · ".join(parts)
