"""The top of Compare: which runs, their pills, and what can be done with all of them."""

from __future__ import annotations

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from lab import paths
from lab.chat.conversations import MAX_MODELS
from lab.compare.contestants import MAX_SHOWN, Contestant, contestants
from lab.errors import LabError
from lab.formatting import quantity
from lab.paths import RunDir
from lab.runs import index
from lab.runs.index import RunSummary
from lab.runs.metric_series import series_of
from lab.runs.outcomes import outcome
from lab.runs.status import status
from lab.ui import colours, links, titles
from lab.ui.fragments import fragment
from lab.ui.markdown_safety import escape_markdown, plain

SEEN, OF = "compare.seen", "compare.of"
MAX_RUNS = 36  # twelve contestants with three seeds each
PAIRS = 3
BASE = "base"
LOOK_S = 3.0


def name_of(contestant: Contestant) -> str:
    """ "● wren lora" as Markdown."""
    entry = contestant.first.entry
    name = contestant.name if entry.name else titles.method(entry.method_options)
    return f"{colours.dot(entry.colour)} {escape_markdown(name)}"


def plain_name(contestant: Contestant) -> str:
    """The same as text that is drawn as it is."""
    entry = contestant.first.entry
    return str(plain(contestant.name if entry.name else titles.method(entry.method_options)))


def chosen() -> list[RunDir]:
    """The runs that the address names; one that is gone is said, and can be taken out."""
    ids = [part for part in st.query_params.get("runs", "").split(",") if part]
    runs, missing = [], []
    for run_id in dict.fromkeys(ids):
        try:
            runs.append(paths.run_dir(run_id))
        except LabError:
            missing.append(run_id)
    if missing:
        with st.container(horizontal=True, vertical_alignment="center"):
            struck = ", ".join(f"~~{escape_markdown(name[:60])}~~" for name in missing[:5])
            st.markdown(f":material/delete: {struck} no longer exists.", width="content")
            if st.button("Remove", key="compare.remove"):
                go(runs)
    if len(runs) > MAX_RUNS:
        st.warning(
            f"{quantity(len(runs), 'run')} are named; the first {MAX_RUNS} are shown.",
            icon=":material/warning:",
        )
    return runs[:MAX_RUNS]


def go(runs: list[RunDir]) -> None:
    """Show these runs: the address is what is compared."""
    st.session_state.pop(SEEN, None)
    st.query_params["runs"] = ",".join(run.id for run in runs)
    st.rerun()


def actions(row: DeltaGenerator, runs: list[RunDir], those: list[Contestant]) -> None:
    """Add runs, and chat with those that are compared."""
    with row.popover("Add runs", icon=":material/add:", key="compare.add"):
        picked = choose([entry for entry in index.entries() if not entry.is_archived], runs)
        if st.button("Compare these", key="compare.add.apply", disabled=not picked):
            go(picked)
    bases = list(dict.fromkeys(f"base:{each.first.entry.model}" for each in those))
    models = [*bases, *(f"run:{each.id}" for each in those if each.first.run.artifact.is_dir())]
    if row.button(
        "Chat with these", icon=":material/forum:", key="compare.chat",
        disabled=len(models) == len(bases),
        help=f"The base and the first {MAX_MODELS - len(bases)} of them that have a result."
        if len(models) > MAX_MODELS else None,
    ):  # fmt: skip
        query = {"models": ",".join(models[:MAX_MODELS])}
        links.switch("chat", query)


def choose(entries: list[RunSummary], runs: list[RunDir]) -> list[RunDir]:
    """A list of all runs to choose from."""
    labels = {entry.id: _label(entry) for entry in entries}
    picked = st.multiselect(
        "Runs", list(labels), default=[run.id for run in runs if run.id in labels],
        format_func=lambda run_id: labels.get(run_id, run_id), key="compare.runs",
        max_selections=MAX_RUNS, placeholder="Choose two or more",
    )  # fmt: skip
    return [paths.run_dir(run_id) for run_id in picked]


def _label(entry: RunSummary) -> str:
    loss = outcome(RunDir(paths.runs() / entry.id)).loss
    parts = [
        entry.name or entry.id,
        titles.method(entry.method_options),
        entry.status.state,
        "" if loss is None else f"{loss:.2f}",
    ]
    return str(plain(" · ".join(part for part in parts if part)))


def nothing_chosen() -> None:
    """What to do without a run: choose, or take one of the newest pairs on equal terms."""
    entries = [entry for entry in index.entries() if not entry.is_archived]
    if not entries:
        st.info("No runs yet. Train two, and compare them here.", icon=":material/info:")
        st.page_link(
            links.page("new_run"), label="Set up LoRA against full fine-tuning",
            icon=":material/compare_arrows:", query_params={"preset": "full-lora"},
        )  # fmt: skip
        return
    st.markdown("Choose two or more runs.")
    picked = choose(entries, [])
    if st.button("Compare", type="primary", key="compare.start", disabled=not picked):
        go(picked)
    pairs = newest_pairs(entries)
    if pairs:
        st.caption("On equal terms, the newest first:")
    for first, second in pairs:
        names = [
            f"{colours.dot(entry.colour)} {escape_markdown(entry.name or entry.id)}"
            for entry in (first, second)
        ]
        if st.button(" against ".join(names), key=f"compare.pair.{first.id}.{second.id}"):
            go([paths.run_dir(first.id), paths.run_dir(second.id)])


def newest_pairs(entries: list[RunSummary]) -> list[tuple[RunSummary, RunSummary]]:
    """Up to three pairs of evaluated runs of the same model and data, each run once."""
    measured = [
        entry for entry in entries if outcome(RunDir(paths.runs() / entry.id)).loss is not None
    ][:40]
    pairs: list[tuple[RunSummary, RunSummary]] = []
    used: set[str] = set()
    for position, first in enumerate(measured):
        partner = next(
            (
                other
                for other in measured[position + 1 :]
                if (other.model, other.dataset) == (first.model, first.dataset)
                and not {first.id, other.id} & used
            ),
            None,
        )
        if partner is not None and len(pairs) < PAIRS:
            pairs.append((first, partner))
            used |= {first.id, partner.id}
    return pairs


def pills(those: list[Contestant]) -> tuple[list[Contestant], bool]:
    """(the contestants that are shown, whether the base is). A click on a pill hides a run."""
    labels = {BASE: base_label(those)} | {each.id: _pill(each) for each in those}
    if SEEN not in st.session_state or st.session_state.get(OF) != list(labels):
        st.session_state[SEEN] = list(labels)  # other runs than those that were hidden
    st.session_state[OF] = list(labels)
    seen = st.pills(
        "Shown", list(labels), selection_mode="multi", format_func=labels.get, key=SEEN,
        label_visibility="collapsed", persist_state="session",
    )  # fmt: skip
    return [each for each in those if each.id in seen][:MAX_SHOWN], BASE in seen


def base_label(those: list[Contestant]) -> str:
    names = list(dict.fromkeys(titles.model(each.first.entry.model) for each in those))
    name = names[0] if len(names) == 1 else f"{quantity(len(names), 'base model')}"
    return f"{colours.BASE_DOT} **{escape_markdown(name)}** · base model"


def _pill(contestant: Contestant) -> str:
    loss = contestant.value("loss")
    parts = [f"**{name_of(contestant)}**"]
    parts.append(escape_markdown(titles.method(contestant.first.entry.method_options)))
    if len(contestant.runs) > 1:
        parts.append(f"{quantity(len(contestant.runs), 'seed')}")
    if not contestant.has_ended:
        parts.append(contestant.first.entry.status.state)
    if loss is not None:
        parts.append(f"{loss:.2f}")
    return " · ".join(parts)


def watch(runs: list[RunDir]) -> None:
    """While one of them goes on, the page is drawn anew at its evaluations and at its end."""
    before = _progress(runs)
    if all(status(run).has_ended for run in runs):
        return

    @fragment(run_every=LOOK_S)
    def look() -> None:
        if _progress(runs) != before:
            st.rerun()

    look()


def _progress(runs: list[RunDir]) -> list[tuple[str, int]]:
    """(state, number of evaluations) of each run."""
    return [(status(run).state, series_of(run).evaluation.length) for run in runs]


def read(runs: list[RunDir]) -> list[Contestant]:
    return contestants(runs)
