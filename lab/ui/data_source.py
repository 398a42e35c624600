"""Where a dataset comes from: the lab, an upload, a file of this machine, the hub."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import streamlit as st

from lab import formatting
from lab.data import catalog, hub
from lab.errors import LabError
from lab.ui import hub_fields, typed_examples
from lab.ui.markdown_safety import escape_markdown, plain, user_errors

SOURCES = {
    "builtin": "Built-in",
    "upload": "Upload",
    "typed": "Type examples",
    "path": "Local file",
    "hub": "Hugging Face Hub",
}
BLOCK = 1 << 20
# What a link may bring besides the dataset and the model, by the names of the spec, and the widget
# that shows it and keeps its limits; {} stands for the dataset.
WIDGETS = {
    "eval_dataset": "data.held_out",
    "eval_fraction": "data.fraction.{}",
    "format": "data.format.{}",
    "loss_on": "data.loss",
    "max_length": "data.length",
    "on_invalid_row": "data.bad",
    "template": "data.template",
    "truncation": "data.side",
}
NUMBERS = {
    "max_length": (int, "[0-9]{1,7}"),
    "eval_fraction": (float, r"[0-9](\.[0-9]{1,17})?(e-[0-9]{2})?"),  # as str writes 0.00001
}


def choose() -> str:
    """The id of the set to look at; "" as long as none is chosen."""
    if saved := st.session_state.pop("data.saved", ""):
        _point_to(saved)
    _follow_link()
    source = st.segmented_control(
        "Source",
        list(SOURCES),
        format_func=SOURCES.get,
        default="builtin",
        key="data.source",
        required=True,
        persist_state="session",
        label_visibility="collapsed",
    )
    sources = {
        "builtin": _built_in, "upload": _upload, "typed": _typed, "path": _path, "hub": _hub,
    }  # fmt: skip
    chosen = sources[str(source)]()
    if chosen:
        st.query_params["dataset"] = chosen
        _remember(chosen)
    return chosen


def _remember(dataset_id: str) -> None:
    """That the URL names this dataset now."""
    before = st.session_state.get("data.in_url")
    if before != dataset_id:
        st.session_state["data.was_in_url"], st.session_state["data.in_url"] = before, dataset_id


def link_to(dataset_id: str, model: str, settings: Mapping[str, Any]) -> dict[str, str]:
    """The query of a link to this page that shows the dataset of a form, read as the form reads it:
    `settings` are values of `DataSpec` by name, of which those in `WIDGETS` are taken."""
    query = {"dataset": dataset_id, "eval_dataset": str(settings.get("eval_dataset") or "")}
    query |= {"model": model} if model else {}
    values = {name: settings.get(name) for name in WIDGETS if name not in query}
    return query | {name: str(value) for name, value in values.items() if value is not None}


def _follow_link() -> None:
    """Show what the URL names, if somebody has come by a link, once: the page's own URL names what
    it shows already, or, where the browser is slow, what it showed before."""
    dataset_id = st.query_params.get("dataset", "")
    known = (st.session_state.get("data.in_url"), st.session_state.get("data.was_in_url"))
    is_of_the_form = any(name in st.query_params for name in ("model", *WIDGETS))
    if dataset_id and (is_of_the_form or dataset_id not in known):
        _point_to(dataset_id)
        _remember(dataset_id)
    if model := st.query_params.pop("model", ""):
        st.session_state["data.model"] = model
    for name, widget in WIDGETS.items():
        text = st.query_params.pop(name, None)
        number, pattern = NUMBERS.get(name, (str, ".*"))
        if text is not None and re.fullmatch(pattern, text):
            st.session_state[widget.format(dataset_id)] = number(text)


def _point_to(dataset_id: str) -> None:
    """Open the page on the set that the URL names."""
    kind = dataset_id.partition(":")[0]
    if kind in ("builtin", "upload"):
        st.session_state["data.source"] = kind
        st.session_state[f"data.{kind}"] = dataset_id
    elif hub.is_id(dataset_id) and not dataset_id.startswith(("/", ".", "~")):
        st.session_state["data.source"], st.session_state["data.hub"] = "hub", dataset_id
    else:
        st.session_state["data.source"], st.session_state["data.path"] = "path", dataset_id


def _built_in() -> str:
    datasets = {dataset.id: dataset for dataset in catalog.built_in()}
    if st.session_state.get("data.builtin") not in datasets:
        st.session_state["data.builtin"] = "builtin:persona-chats"
    chosen: str = st.selectbox(
        "Dataset",
        list(datasets),
        format_func=lambda dataset_id: str(datasets[dataset_id].card["title"]),
        key="data.builtin",
        persist_state="session",
    )
    card = datasets[chosen].card
    st.caption(
        escape_markdown(
            f"{formatting.quantity(card['rows'], 'row')}, {card['format']}, "
            f"{card['license']}. {card['summary']}"
        )
    )
    return chosen


def _upload() -> str:
    uploaded = st.file_uploader(
        "Upload JSONL, JSON, CSV, TSV, Parquet or text (gzip allowed)",
        type=["jsonl", "ndjson", "json", "csv", "tsv", "parquet", "txt", "gz"],
        key="data.file",
    )
    uploads = catalog.uploads()
    if uploaded is not None and st.session_state.get("data.kept") != uploaded.file_id:
        with user_errors():
            added = catalog.add(uploaded.name, iter(lambda: uploaded.read(BLOCK), b""))
        st.session_state["data.kept"] = uploaded.file_id
        st.session_state["data.upload"] = added.id
        st.session_state["data.renamed"] = catalog.renamed(uploaded.name, added)
        st.rerun()
    if message := st.session_state.pop("data.renamed", ""):
        st.info(escape_markdown(message))
    if not uploads:
        st.info("No uploads yet. Files stay on this machine.")
        return ""
    ids = [upload.id for upload in uploads]
    if st.session_state.get("data.upload") not in ids:
        st.session_state["data.upload"] = ids[0]
    with st.container(horizontal=True, vertical_alignment="bottom"):
        chosen: str = st.selectbox(
            "Uploaded", ids, format_func=_size_too, key="data.upload", persist_state="session"
        )
        if st.button("Remove", icon=":material/delete:", key="data.remove"):
            with user_errors():
                catalog.remove(chosen.removeprefix("upload:"))
            st.rerun()
    return chosen


def _typed() -> str:
    """Examples that are typed here; once saved they are an upload like any other."""
    if saved := typed_examples.form():
        st.session_state["data.saved"] = saved
        st.rerun()
    return ""


def _size_too(dataset_id: str) -> str:
    try:
        size = formatting.size(catalog.resolve(dataset_id).path.stat().st_size)
    except (LabError, OSError):
        return dataset_id
    return str(plain(f"{dataset_id.removeprefix('upload:')} ({size})"))


def _path() -> str:
    path: str = st.text_input(
        "Path",
        key="data.path",
        placeholder="/home/me/chats.jsonl",
        help="A .jsonl .json .csv .tsv .parquet or .txt file, also gzipped. Read in place, not "
        "copied.",
        persist_state="session",
    )
    return path.strip()


def _hub() -> str:
    listed = {dataset.id: dataset for dataset in hub.known()}
    fetched = [dataset_id for dataset_id in hub.fetched() if dataset_id not in listed]
    choice = st.selectbox(
        "Dataset ID",
        [*fetched, *listed],
        index=None,
        format_func=lambda dataset_id: _titled(dataset_id, listed),
        placeholder="org/name, org/name:config or org/name@split",
        accept_new_options=True,
        key="data.hub",
        persist_state="session",
    )
    if not choice:
        return ""
    if choice in listed:
        dataset = listed[choice]
        st.caption(
            escape_markdown(
                f"{formatting.quantity(dataset.rows, 'row')}, {dataset.format}, "
                f"{dataset.license}. {dataset.summary}"
            )
        )
    with user_errors():
        hub_id = hub.parse(str(choice))
    hub_fields.token_field(str(hub_id))
    hub_fields.fetch_panel(str(hub_id))
    if note := hub.split_note(hub_id):
        st.warning(escape_markdown(note), icon=":material/warning:")
    return str(hub_id) if hub_id.file.is_file() else ""


def _titled(hub_id: str, listed: dict[str, hub.KnownDataset]) -> str:
    titled = f"{hub_id} ({listed[hub_id].title})" if hub_id in listed else hub_id
    return str(plain(titled))
