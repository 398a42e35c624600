"""The field of the Chat page that adds an adapter of the Hub or of a folder, on its base."""

from __future__ import annotations

import time
from collections.abc import Callable

import streamlit as st

from lab import formatting, methods
from lab.chat import adapters
from lab.chat.adapters import PeftAdapter
from lab.errors import LabError
from lab.models import catalog, hub, model_list
from lab.recent import Recent
from lab.ui.fragments import fragment
from lab.ui.markdown_safety import escape_markdown, tell
from lab.ui.waiting import BackgroundJob


class AdapterJob(BackgroundJob):
    """What an adapter is and what has still to be downloaded for it. Nothing but lists of files
    and configs is fetched."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name, self.begun = name, time.monotonic()
        self.adapter: PeftAdapter | None = None
        self.bytes_to_come = 0

    def ask(self) -> None:
        adapter = adapters.find(self.name)
        stills = (
            hub.adapter_download(adapter.source),
            hub.download_size(catalog.resolve(adapter.base)),
        )
        self.bytes_to_come = sum(still.bytes for still in stills if still)
        _bases.put(f"base:{adapter.base}", adapter.base)
        self.adapter = adapter


_jobs: Recent[str, AdapterJob] = Recent(16)
_bases: Recent[str, str] = Recent(64)  # of the adapters that were looked up


def is_base(name: str) -> bool:
    """Whether `name` is a base that is here, or that of an adapter which was looked up."""
    model = name.removeprefix("base:").partition("#")[0]
    is_here = name.startswith("base:") and model_list.is_hub_id(model)
    return _bases.get(name) is not None or (is_here and model_list.is_cached(model))


def add_adapter(names: list[str], add: Callable[[list[str]], None]) -> None:
    """A field for an id; once it is looked up, a button that calls `add` with the adapter, and
    before it its base where that is not among `names`."""
    text = st.text_input(
        "Adapter", key="chat.adapter", placeholder="Hub ID or folder of a PEFT adapter",
        help="A PEFT adapter is loaded on the base model that its config names. "
        "ID@BASE loads it on another base.",
    )  # fmt: skip
    name = f"{adapters.PREFIX}{str(text or '').strip()}"
    if st.button("Look up", icon=":material/search:", key="chat.adapter.find", disabled=not text):
        st.session_state["chat.adapter.name"] = name
        _jobs.put(name, AdapterJob(name).start())
    job = _jobs.get(name) if st.session_state.get("chat.adapter.name") == name else None
    if job is not None:
        _outcome(job, names, add)


def _outcome(job: AdapterJob, names: list[str], add: Callable[[list[str]], None]) -> None:
    @fragment(run_every=None if job.is_complete else 1.0)
    def outcome() -> None:
        job.look("chat.adapter")
        if not job.is_complete:
            st.caption(f"Reading its config … {time.monotonic() - job.begun:.0f} s")
            return
        if job.error is not None or job.adapter is None:
            if not isinstance(job.error, LabError):
                raise job.error or RuntimeError("a job that is complete has an answer")
            tell(job.error)
            return
        st.caption(facts(job))
        if st.button("Add the adapter", type="primary", key="chat.adapter.add"):
            st.session_state.pop("chat.adapter.name")
            base = f"base:{job.adapter.base}"
            wanted = [base, job.name] if base not in names else [job.name]
            add([name for name in wanted if name not in names])

    outcome()


def facts(job: AdapterJob) -> str:
    """ "LoRA of rank 8 on **org/base**", and what is to be downloaded; Markdown."""
    adapter = job.adapter
    assert adapter is not None
    titles = [
        m.title for m in methods.all_methods() if getattr(m, "peft_class", "") == adapter.kind
    ]
    kind = escape_markdown(min(titles, key=len))  # the plain method, not one with another base
    rank = f" of rank {adapter.rank}" if adapter.rank else ""
    line = f"{kind}{rank} on **{escape_markdown(adapter.base)}**"
    if job.bytes_to_come:
        line += f" · :material/download: {formatting.size(job.bytes_to_come)} to download"
    return line
