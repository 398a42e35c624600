"""Small views that several pages show: the machine, and the state of a run."""

from __future__ import annotations

import json
from typing import Any

import streamlit as st

from lab import access, formatting
from lab import host as this_machine
from lab.atomic_files import finite_number, read_object
from lab.preflight import doctor
from lab.ui import run_state
from lab.ui.markdown_safety import escape_markdown, plain


def json_code(value: Any) -> None:
    """A value as JSON to read and to copy. The colours of `st.json` are too pale (contrast 2.9)."""
    text = json.dumps(plain(value), indent=1, ensure_ascii=False, default=str)
    st.code(text, language=None, wrap_lines=True, height=min(400, 40 + 22 * text.count("\n")))


def warnings() -> None:
    """Who else gets in, where that is not this account alone, and what will not work here."""
    for warning in access.warnings():
        st.warning(escape_markdown(warning), icon=":material/lock_open:")
    for problem in doctor.problems(_machine()):
        st.warning(escape_markdown(problem), icon=":material/warning:")


@st.cache_data(ttl=10, show_spinner=False)
def _machine() -> this_machine.HostFacts:
    return this_machine.describe()


def machine_line() -> str:
    """ "RTX 4090 · 24.00 GB · 61.00 GB of disk free" as Markdown."""
    facts = _machine()
    name, memory = (
        (facts.gpus[0].name, facts.gpus[0].memory_bytes)
        if facts.gpus
        else (f"{facts.cores} CPU cores", facts.memory_bytes)
    )
    disk = formatting.size(facts.disk_free_bytes)
    return escape_markdown(f"{name} · {formatting.size(memory)} · {disk} of disk free")


def free_memory() -> str:
    """ "12.40 GB", of the first GPU or of this machine."""
    facts = _machine()
    free = facts.gpus[0].free_bytes if facts.gpus else facts.memory_free_bytes
    return formatting.size(free)


def machine() -> None:
    """Processor, memory, GPU, disk, and what that means for training."""
    facts = _machine()
    peak = finite_number((read_object(this_machine.machine_file()) or {}).get("cpu_peak_flops"))
    rows = [
        ("memory", "CPU", f"{facts.processor}, {formatting.quantity(facts.cores, 'core')}"),
        (
            "memory_alt",
            "Memory",
            f"{formatting.size(facts.memory_bytes)}, "
            f"{formatting.size(facts.memory_free_bytes)} free",
        ),
        ("hard_drive", "Disk", f"{formatting.size(facts.disk_free_bytes)} free"),
    ]
    if peak:
        rows.append(("speed", "CPU speed", f"{peak / 1e9:.0f} GFLOP/s (float32 matrix multiply)"))
    for gpu in facts.gpus:
        free = f"{formatting.size(gpu.memory_bytes)}, {formatting.size(gpu.free_bytes)} free"
        rows.append(("developer_board", "GPU", f"{gpu.name}: {free}"))
    for icon, name, value in rows:
        st.markdown(f":material/{icon}: **{name}**  {escape_markdown(value)}")
    if not facts.gpus:
        st.caption(
            "No NVIDIA GPU found: training runs on the CPU, which is enough for small models."
        )


def state_badge(state: str) -> None:
    st.badge(state, icon=run_state.icon(state), color=run_state.colour(state))  # type: ignore[arg-type]
