"""The dialog that chooses a base model: the catalogue with what fits here, the hub, a folder."""

from __future__ import annotations

import json
import time
from typing import Any

import pandas as pd
import streamlit as st

from lab import formatting, host, methods
from lab.errors import LabError
from lab.forecasts import Forecast
from lab.hub import search
from lab.hub.search import HubModel
from lab.models import catalog as models
from lab.models import model_list
from lab.models.model_list import ListedModel
from lab.preflight.client import Abandoned, planner
from lab.recent import Recent
from lab.ui import form
from lab.ui.fragments import fragment
from lab.ui.markdown_safety import escape_markdown, plain, tell
from lab.ui.waiting import BackgroundJob, failure

SIZES = {
    "up to 1 B": (0.0, 1e9),
    "1 to 4 B": (1e9, 4.1e9),
    "7 to 9 B": (4.1e9, 9e9),
    "over 9 B": (9e9, 1e13),
}
TIGHT = 0.9  # of the free memory: more than that may not leave room for anything else
MAX_SEARCH_S = 10.0


class NeedsJob(BackgroundJob):
    """The memory that each listed model would need with the form's method and settings."""

    def __init__(self, spec: dict[str, Any], listed: list[ListedModel]) -> None:
        super().__init__()
        self.spec, self.listed = spec, listed
        self.needs: dict[str, Forecast] = {}
        self.refusals: dict[str, str] = {}

    def ask(self) -> None:
        # of an architecture without weights, too, the question is whether it would run here
        gpus = host.gpus()
        device: dict[str, Any] = {"kind": "cpu"}
        if gpus:
            device = {"kind": "cuda", "memory_bytes": host.largest(gpus).free_bytes}
        for model in self.listed:
            spec = self.spec | {"model": model.config_id, "init_from_run": ""}
            try:
                self.needs[model.id] = planner.estimate(spec, device, shadow=False)
            except Abandoned:
                raise
            except LabError as error:
                self.refusals[model.id] = str(error)


class SearchJob(BackgroundJob):
    """A search of the hub."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text, self.begun = text, time.monotonic()
        self.matches: list[HubModel] = []

    def ask(self) -> None:
        self.matches = search.models(self.text)


_needs: Recent[str, NeedsJob] = Recent(8)
_searches: Recent[str, SearchJob] = Recent(16)


def _needs_job() -> NeedsJob:
    spec = form.value()
    spec["name"] = spec["model"] = ""
    key = json.dumps(spec, sort_keys=True, default=str)
    return _needs.get_or(
        key,
        lambda: NeedsJob(spec, model_list.listed()).start(),
        is_stale=lambda job: job.is_stale,
    )


def facts_of(model_id: str) -> str:
    """ "135 M parameters · Apache-2.0 · 8,192 tokens of context · installed"."""
    for model in model_list.listed():
        if model.id == model_id:
            context = f" · {model.context:,} tokens of context" if model.context else ""
            here = "installed" if model.is_installed else (
                f"download of {formatting.size(model.download_bytes)}"
            )  # fmt: skip
            count = formatting.count(model.parameters)
            return f"{count} parameters · {model.license}{context} · {here}"
    return model_id


OPEN = "pick.open"  # a run of the whole page, as when an estimate is ready, closes a dialog


def open_it() -> None:
    st.session_state[OPEN] = True


def close() -> None:
    st.session_state[OPEN] = False


def show() -> None:
    """The dialog, while it is open."""
    if st.session_state.get(OPEN):
        _dialog()


@st.dialog("Choose a base model", width="large", icon=":material/deployed_code:", on_dismiss=close)
def _dialog() -> None:
    row = st.container(horizontal=True, vertical_alignment="center")
    text = row.text_input(
        "Search", key="pick.search", type="search", live=True, label_visibility="collapsed",
        placeholder="Name, organisation or Hub ID",
    )  # fmt: skip
    source = row.segmented_control(
        "Source", ["Catalogue", "Hub", "Folder"], default="Catalogue", key="pick.source",
        required=True, label_visibility="collapsed", width="content",
    )  # fmt: skip
    text = str(text or "").strip()
    if source == "Hub":
        chosen = _hub(text)
    elif source == "Folder":
        chosen = _folder()
    else:
        chosen = _catalogue(text)
    with st.container(horizontal=True, horizontal_alignment="right"):
        if st.button("Cancel", key="pick.cancel"):
            close()
            st.rerun()
        if st.button("Use this model", type="primary", key="pick.use", disabled=not chosen):
            _use(str(chosen))


def _use(model_id: str) -> None:
    """Take the model over and close; a folder that is none is said here."""
    try:
        if model_id.startswith(("/", "./", "../", "~")):
            models.resolve(model_id)
    except LabError as error:
        tell(error)
        return
    st.session_state["new.model"] = model_id
    close()
    st.rerun()


def _catalogue(text: str) -> str | None:
    row = st.container(
        horizontal=True, horizontal_alignment="distribute", vertical_alignment="center"
    )
    sizes = row.pills(
        "Size", list(SIZES), key="pick.size", selection_mode="multi", label_visibility="collapsed"
    )
    only_fitting = row.toggle("Only what fits here", key="pick.fits")
    job = _needs_job()

    @fragment(run_every=None if job.is_complete else 1.0)
    def table() -> None:
        job = _needs_job()
        job.look("picker")
        failure(job, "picker")
        shown = _matching(job, text, sizes or [], only_fitting)
        if shown:
            st.session_state["pick.chosen"] = _table(job, shown)
        else:
            st.session_state["pick.chosen"] = None
            st.caption("No matching models.")

    table()
    _caption(job)
    chosen: str | None = st.session_state.get("pick.chosen")
    if chosen is None and model_list.is_hub_id(text):
        st.caption(f"*Use this model* takes **{escape_markdown(text)}** from the Hub.")
        return text
    return chosen


def _matching(job: NeedsJob, text: str, sizes: list[str], only_fitting: bool) -> list[ListedModel]:
    bounds = [SIZES[size] for size in sizes] or [(0.0, 1e13)]
    return [
        model
        for model in job.listed
        if text.lower() in f"{model.id} {model.title}".lower()
        and any(low <= model.parameters < high for low, high in bounds)
        and (not only_fitting or here(job, model).startswith(("●", "◐")))
    ]


def here(job: NeedsJob, model: ListedModel) -> str:
    """Whether the model would fit this machine, in words."""
    if model.id in job.refusals:
        return "not possible"
    estimate = job.needs.get(model.id)
    if estimate is None:
        return "–" if job.is_complete else "…"
    peak, free = estimate.memory.peak_bytes, estimate.device_bytes
    if not free:
        return "–"
    if peak > free:
        return "○ too large"
    return "◐ tight" if peak > TIGHT * free else "● fits"


def _table(job: NeedsJob, shown: list[ListedModel]) -> str:
    """The models; the id of the chosen one."""
    needs = [job.needs.get(model.id) for model in shown]
    event = st.dataframe(
        pd.DataFrame(
            {
                "Model": [model.title for model in shown],
                "Parameters": [formatting.count(model.parameters) for model in shown],
                "Licence": [model.license for model in shown],
                "Context": [f"{model.context:,}" if model.context else "–" for model in shown],
                "Needs": [f"{n.memory.peak_bytes / 1e9:.1f} GB" if n else "–" for n in needs],
                "Here": [here(job, model) for model in shown],
                "Download": [
                    "installed" if model.is_installed else formatting.size(model.download_bytes)
                    for model in shown
                ],
            }
        ),
        # another list is another table: a chosen row never slides to a neighbour
        key=f"pick.table.{hash(tuple(model.id for model in shown)):x}",
        hide_index=True, on_select="rerun", selection_mode="single-row-required", height=330,
        column_config={
            name: st.column_config.TextColumn(alignment="right")
            for name in ("Parameters", "Context", "Needs", "Download")
        },
    )  # fmt: skip
    rows = event["selection"]["rows"]
    return shown[rows[0] if rows and rows[0] < len(shown) else 0].id


def _caption(job: NeedsJob) -> None:
    spec = form.value()
    free = next((e.device_bytes for e in job.needs.values() if e.device_bytes), None)
    room = f" ({free / 1e9:.1f} GB free)" if free else ""
    st.caption(
        f"*Needs* is the estimate for {escape_markdown(methods.get(spec['method']['name']).title)},"
        f" batch size {spec['train']['batch_size']}, sequence length {spec['data']['max_length']} "
        f"on this machine{room}. Change the method and it changes."
    )


def _hub(text: str) -> str | None:
    """A search of the hub, which can be stopped and ends by itself."""
    if not text:
        st.caption("Type a name into the search field. It is sent to the Hugging Face Hub.")
        return None
    job = _searches.get_or(text, lambda: SearchJob(text).start(), is_stale=lambda job: job.is_stale)

    @fragment(run_every=None if job.is_complete else 1.0)
    def results() -> None:
        job.look("picker.hub")
        _results(job)

    results()
    rows = (st.session_state.get("pick.hub") or {}).get("selection", {}).get("rows", [])
    if rows and rows[0] < len(job.matches):
        return str(job.matches[rows[0]].id)
    return text if model_list.is_hub_id(text) else None


def _results(job: SearchJob) -> None:
    waited = time.monotonic() - job.begun
    failure(job, "picker.hub")
    if job.error is not None:
        return
    if not job.is_complete and waited >= MAX_SEARCH_S:
        st.warning(f"The Hub did not answer within {MAX_SEARCH_S:.0f} s, or was stopped.")
    elif not job.is_complete:
        with st.container(horizontal=True, vertical_alignment="center"):
            st.caption(f"Searching the Hub … {waited:.0f} s")
            if st.button("Stop", key="pick.stop"):
                job.begun -= MAX_SEARCH_S
    elif not job.matches:
        st.caption("No matching models.")
    else:
        st.dataframe(
            pd.DataFrame(
                {
                    "Model": [plain(match.id) for match in job.matches],
                    "Parameters": [formatting.count(match.parameters) for match in job.matches],
                    "Licence": [plain(match.license) for match in job.matches],
                    "Downloads": [match.downloads for match in job.matches],
                    "Access": ["on request" if m.is_gated else "open" for m in job.matches],
                }
            ),
            hide_index=True, key="pick.hub", on_select="rerun", selection_mode="single-row",
        )  # fmt: skip


def _folder() -> str | None:
    path = st.text_input(
        "Folder with config.json and safetensors weights", key="pick.folder",
        placeholder="/home/me/models/my-model",
    )  # fmt: skip
    return str(path or "").strip() or None
