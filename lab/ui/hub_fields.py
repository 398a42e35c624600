"""What pages ask of the hub: a token for this server's memory, a dataset to be fetched."""

from __future__ import annotations

import streamlit as st

from lab import formatting
from lab.data import catalog, hub
from lab.hub import credentials, repository
from lab.hub.progress import DownloadForecast
from lab.ui.fragments import fragment
from lab.ui.markdown_safety import escape_markdown, user_errors

TOKEN_HELP = (
    "For gated and private repositories. Stays in the memory of this server "
    "and of its download processes; never written to a file. Without it, HF_TOKEN "
    "is used, then the token of `hf auth login`."
)


def token_field(*ids: str) -> None:
    """A field for a token, where one of `ids` names something of the hub."""
    if not any(repository.is_id(name) or catalog.is_on_hub(name) for name in ids):
        return
    given = st.text_input("Hub token", type="password", key="hub.token", help=TOKEN_HELP)
    if given != st.session_state.get("hub.token.used", ""):
        with user_errors():
            credentials.give(given)
        st.session_state["hub.token.used"] = given
    token = credentials.current()
    st.caption(
        f"Requests are sent with {token.origin}." if token else "Requests are sent without a token."
    )


def fetch_panel(dataset_id: str) -> None:
    """How far the fetch of a set of the hub is, or a button to begin one; nothing for a set that
    is here, or for an id of another kind."""
    if not catalog.is_on_hub(dataset_id):
        return
    with user_errors():
        hub_id = hub.parse(dataset_id)
    state = hub.state_of(hub_id)
    if state.state == "fetching":
        _fetching(hub_id)
        return
    if hub_id.file.is_file():
        return
    if state.state == "failed":
        st.error(escape_markdown(f"{state.message} {state.hint}"))
    if st.button("Download", icon=":material/download:", type="primary", key="data.fetch"):
        with user_errors():
            hub.start_fetch(hub_id)
        st.rerun()


@fragment(run_every=1.0)
def _fetching(hub_id: hub.HubId) -> None:
    state = hub.state_of(hub_id)
    if state.state != "fetching":
        st.rerun()
    done, total = state.bytes, state.total_bytes
    if state.rows:
        done, total = state.rows, state.total
    with st.container(horizontal=True, vertical_alignment="center"):
        st.progress(min(1.0, done / total) if total else 0.0, text=f"Downloading: {state.progress}")
        if st.button("Stop", icon=":material/stop_circle:", key="data.fetch.stop"):
            hub.stop_fetch(hub_id)
            st.rerun()


def download_in_words(still: DownloadForecast | None) -> str:
    """What is still to be fetched; "" where everything is here."""
    if still is None or not still.bytes:
        return ""
    return f":material/download: **{formatting.size(still.bytes)}** to download first"
