"""Small views that several pages show: the machine, and a run in one line."""

from __future__ import annotations

from typing import Any

import streamlit as st

from lab import access, formatting, paths
from lab import host as this_machine
from lab.atomic_files import number, read_object
from lab.models.catalog import BUILT_IN
from lab.runs import index
from lab.runs.index import RunSummary
from lab.ui import links, run_state
from lab.ui.markdown_safety import escape_markdown


def warnings() -> None:
    """Who else gets in, where that is not this account alone."""
    for warning in access.warnings():
        st.warning(escape_markdown(warning), icon=":material/lock_open:")


@st.cache_data(ttl=10, show_spinner=False)
def _machine() -> dict[str, Any]:
    return this_machine.describe()


def machine() -> None:
    """Processor, memory, GPU, disk, and what that means for training."""
    facts = _machine()
    peak = number((read_object(this_machine.machine_file()) or {}).get("cpu_peak_flops"))
    rows = [
        ("memory", "Processor", f"{facts['processor']}, {facts['cores']} cores"),
        (
            "memory_alt",
            "Memory",
            f"{formatting.size(facts['memory_bytes'])}, "
            f"{formatting.size(facts['memory_free_bytes'])} free",
        ),
        ("hard_drive", "Disk", f"{formatting.size(facts['disk_free_bytes'])} free"),
    ]
    if peak:
        rows.append(("speed", "Speed", f"{peak / 1e9:.0f} GFLOP/s (float32 product)"))
    for gpu in facts["gpus"]:
        free = f"{formatting.size(gpu['memory_bytes'])}, {formatting.size(gpu['free_bytes'])} free"
        rows.append(("developer_board", "GPU", f"{gpu['name']}: {free}"))
    for icon, name, value in rows:
        st.markdown(f":material/{icon}: **{name}**  {escape_markdown(value)}")
    if not facts["gpus"]:
        st.caption("No NVIDIA GPU: training runs on the processor, well suited to small models.")
    for model in BUILT_IN:
        if not model.is_ready:
            st.warning(
                f"{model.title} is not prepared. Run `make setup` once.", icon=":material/warning:"
            )


def recent(most: int) -> list[RunSummary]:
    return [index.entry(run) for run in paths.all_runs()[:most]]


def state_badge(state: str) -> None:
    st.badge(state, icon=run_state.icon(state), color=run_state.colour(state))  # type: ignore[arg-type]


def run_line(entry: RunSummary) -> None:
    """Name, state and age of a run, with a link to its Monitor."""
    with st.container(border=True, horizontal=True, vertical_alignment="center", gap="small"):
        st.page_link(
            links.page("monitor"),
            label=f"**{escape_markdown(entry.name or entry.id)}**",
            query_params={"run": entry.id},
            width="stretch",
        )
        state_badge(entry.status.state)
        st.caption(
            f"{escape_markdown(entry.method)} · {formatting.when(entry.created)}", width="content"
        )
