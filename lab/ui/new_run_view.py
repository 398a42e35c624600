"""The parts of the New run page."""

from __future__ import annotations

import dataclasses
from typing import Any

import streamlit as st

from lab import formatting, methods, paths, presets, schema
from lab.atomic_files import read_object
from lab.data import catalog as datasets
from lab.data import hub, prepare
from lab.errors import LabError
from lab.export.script import script
from lab.hub import repository
from lab.methods import Method
from lab.methods.parts import compatibility
from lab.models import catalog as models
from lab.runs import index, submissions
from lab.spec import SECTIONS, RunSpec
from lab.ui import (
    data_source,
    form,
    form_fields,
    form_problems,
    hub_fields,
    links,
    method_card,
    start_bar,
    submit,
    titles,
)
from lab.ui.markdown_safety import escape_markdown, plain, user_errors

FILL = "new.fill"  # a spec that another page leaves for the form, once
MORE_DATA = [
    "format",
    "columns",
    "placeholders",
    "on_invalid_row",
    "template",
    "template_args",
    "template_date",
    "objective",
    "max_examples",
    "eval_dataset",
    "truncation",
    "group_by_length",
    "general_fraction",
    "general_dataset",
    "system_prompt",
]
MAIN_DATA = ["max_length", "eval_fraction", "loss_on", "packing"]
MAIN_TRAIN = ["learning_rate", "batch_size"]
SCHEDULE = [
    "lr_scheduler_type",
    "warmup_ratio",
    "optimizer",
    "momentum",
    "weight_decay",
    "max_grad_norm",
    "gradient_accumulation_steps",
    "seed",
]
PRECISION = [
    "precision",
    "adapter_precision",
    "activation_checkpointing",
    "checkpointed_layers",
    "loss_implementation",
    "compile",
]
SAVING = [
    "eval_steps",
    "early_stopping",
    "forgetting_probe",
    "sample_steps",
    "save_steps",
    "keep_best",
    "keep_last",
    "report_to",
]


def show_already_started(ticket: str) -> None:
    """Say so if this form has started its run already (a reload, or a step back)."""
    run = submissions.run_of(ticket)
    if run is None:
        return
    entry = index.entry(run)
    with st.container(border=True, horizontal=True, vertical_alignment="center"):
        name = escape_markdown(entry.name or run.id)
        st.markdown(f":material/check_circle: You already started **{name}** from this form.")
        if st.button("Open Monitor", key="watch"):
            links.open_run(run.id)
        st.button("New run", key="another", on_click=submit.renew)


def prefill_form() -> None:
    """Fill the form with what another page left, from `?from=RUN` if a run is to be repeated or
    from `?preset=NAME`, and an untouched one with defaults."""
    filled = st.session_state.pop(FILL, None)
    if filled is not None:  # by the Advisor
        form.load(_spec_of(filled))
        st.session_state["new.preset"] = None
    preset = st.query_params.get("preset", "")
    if preset in {known.name for known in (*presets.PRESETS, *presets.PAIRS)}:
        del st.query_params["preset"]
        st.session_state["new.preset"] = preset
        _apply_preset()
    source = st.query_params.get("from", "")
    if source:
        trains_on = st.query_params.get("on", "") == "1"
        st.query_params.pop("on", None)
        del st.query_params["from"]  # once: what a person changes afterwards stays
        fill_from(source, trains_on=trains_on)
    if "new.model" not in st.session_state:
        form.load(_spec_of(presets.PRESETS[0].changes))
        st.session_state["new.preset"] = presets.PRESETS[0].name


def fill_from(run_id: str, *, trains_on: bool) -> None:
    """The form with the settings of a run, as they were asked for."""
    try:
        stored = read_object(paths.run_dir(run_id).spec) or {}
    except LabError as error:
        st.warning(escape_markdown(str(error)))
        return
    requested = RunSpec.requested(stored)
    resolved = RunSpec.from_stored(stored)
    spec = RunSpec.from_stored(requested) if requested is not None else resolved
    # what was asked for, so that "auto" stays auto, with the paths and the method as they ran
    again = dataclasses.replace(
        spec,
        name=f"{resolved.name} {'(continued)' if trains_on else '(copy)'}"[:120],
        init_from_run=f"run:{run_id}" if trains_on else spec.init_from_run,
        model=resolved.model,
        method=resolved.method,
        data=dataclasses.replace(
            spec.data, dataset=resolved.data.dataset, system_prompt=resolved.data.system_prompt
        ),
    )
    form.load(again)
    st.session_state["new.preset"] = None


def _spec_of(changes: dict[str, Any]) -> RunSpec:
    return RunSpec.parse(changes, [])


def preset_pills() -> None:
    """Ours, and the pairs; a choice fills the form."""
    everything = {preset.name: preset for preset in (*presets.PRESETS, *presets.PAIRS)}
    st.pills(
        "Preset", list(everything), key="new.preset", on_change=_apply_preset,
        persist_state="session",
        format_func=lambda name: (
            f":material/compare_arrows: {everything[name].title}"
            if presets.pair(name)
            else everything[name].title
        ),
        label_visibility="collapsed",
    )  # fmt: skip
    chosen = everything.get(st.session_state.get("new.preset") or "")
    if chosen is not None:
        st.caption(chosen.help)


def _apply_preset() -> None:
    name = st.session_state.get("new.preset")
    if not name:
        return
    pair = presets.pair(name)
    form.load(_spec_of(pair.changes if pair else presets.get(name).changes))
    if pair:
        method_card.fill_pair(pair)


def model_card() -> None:
    from lab.ui import model_picker

    chosen = str(st.session_state["new.model"])
    with st.container(horizontal=True, horizontal_alignment="distribute"):
        with st.container(width="stretch", gap="xsmall"):
            st.caption("BASE MODEL")
            st.markdown(f"**{escape_markdown(titles.model(chosen))}**")
            st.caption(escape_markdown(model_picker.facts_of(chosen)))
        st.button(
            "Change", icon=":material/swap_horiz:", key="new.pick", on_click=model_picker.open_it
        )
    model_picker.show()
    form_problems.show("model")
    hub_fields.token_field(chosen, str(st.session_state.get("new.data.dataset") or ""))
    grid = st.grid(2, min_column_width=200, gap="small")
    with grid.cell():
        st.text_input(
            "Run name", key="new.name", placeholder="e.g. support bot, LoRA r16",
            persist_state="session",
        )  # fmt: skip
        form_problems.show("name")
    with grid.cell():
        _start_field()


def _start_field() -> None:
    """The weights to begin with; shown where some were chosen, or there are any to choose from."""
    results = {
        f"run:{entry.id}": f"{entry.name or entry.method}, {formatting.when(entry.created)}"
        for entry in index.entries()
        if has_result(entry)
    }
    chosen = str(st.session_state.get("new.init_from_run") or "")
    if chosen and chosen not in results:
        results[chosen] = chosen
    if not results:
        return
    st.selectbox(
        "Initial weights", ["", *results], key="new.init_from_run", persist_state="session",
        format_func=lambda option: str(plain(results.get(option, "base model"))),
        help="The base model, or the trained weights of a run with the same model and method.",
    )  # fmt: skip
    form_problems.show("init_from_run")


def has_result(entry: index.RunSummary) -> bool:
    return entry.status.has_ended and (paths.run_dir(entry.id).artifact).is_dir()


def data_card() -> None:
    st.caption("DATASET")
    known = {dataset.id: dataset for dataset in datasets.built_in()}
    options = [*known, *(upload.id for upload in datasets.uploads()), *hub.fetched()]
    current = st.session_state.get("new.data.dataset")
    if current and current not in options:
        options = [current, *options]
    st.selectbox(
        "Dataset", options, key="new.data.dataset", accept_new_options=True,
        format_func=lambda option: str(plain(titles.dataset(option))), persist_state="session",
        label_visibility="collapsed", placeholder="A dataset, a Hub ID, or the path of a file",
    )  # fmt: skip
    form_problems.show("data.dataset")
    hub_fields.fetch_panel(str(current or ""))
    chosen = known.get(str(current))
    if chosen is not None:
        st.caption(
            f"{formatting.quantity(chosen.card['rows'], 'example')}. "
            f"{escape_markdown(chosen.card['summary'])}"
        )
    with st.container(horizontal=True, vertical_alignment="center"):
        st.page_link(
            links.page("data"), label="Preview examples and tokens", icon=":material/visibility:",
            width="content", query_params=_preview_query(str(current or "")),
        )  # fmt: skip
        with st.popover("Upload", icon=":material/upload:", key="new.upload"):
            _upload()
    form_fields.draw("data", SECTIONS["data"], MAIN_DATA)
    form_fields.folded("More data options", "data", SECTIONS["data"], MORE_DATA)


def _preview_query(dataset_id: str) -> dict[str, str]:
    """What the page Data is to show of this form."""
    values = st.session_state
    settings = {name: values.get(f"new.data.{name}") for name in data_source.WIDGETS}
    return data_source.link_to(dataset_id, str(values.get("new.model") or ""), settings)


def _upload() -> None:
    """A file of one's own, which becomes the form's dataset."""
    uploaded = st.file_uploader(
        "JSONL, JSON, CSV, TSV, Parquet or text (gzip allowed)",
        type=["jsonl", "ndjson", "json", "csv", "tsv", "parquet", "txt", "gz"],
        key="new.upload.file",
    )
    if uploaded is None or st.session_state.get("new.upload.seen") == uploaded.file_id:
        return
    st.session_state["new.upload.seen"] = uploaded.file_id
    with user_errors():
        added = datasets.add(uploaded.name, iter(lambda: uploaded.read(1 << 20), b""))
    st.session_state["new.upload.id"] = added.id
    st.rerun()


def take_upload() -> None:
    """Before the fields are drawn: what was just uploaded is the dataset."""
    added = st.session_state.pop("new.upload.id", None)
    if added:
        st.session_state["new.data.dataset"] = added
        st.session_state["new.preset"] = None


LENGTHS = {
    "max_steps": ("Steps", 60),
    "epochs": ("Epochs", 1.0),
    "max_tokens": ("Tokens", 100_000),
    "max_seconds": ("Seconds", 600.0),
    "max_flops": ("FLOPs", 1e15),
}
LIMITS = [name for name in LENGTHS if name != "epochs"]


def train_card() -> None:
    config = SECTIONS["train"]
    fields = {field.name: field for field in dataclasses.fields(config)}
    hints = schema.field_types(config)
    st.caption("TRAINING")
    units = [name for name in LIMITS if st.session_state.get(f"new.train.{name}") is not None]
    st.session_state["new.unit"] = units[0] if units else "epochs"
    grid = st.grid(4, min_column_width=116, gap="small")
    if not method_card.is_pair():
        with grid.cell():
            form_fields.widget("train", fields["learning_rate"], hints["learning_rate"])
    grid.selectbox(
        "Length in", list(LENGTHS), key="new.unit", format_func=lambda name: LENGTHS[name][0],
        on_change=_change_unit, help="What ends the run.", persist_state="session",
    )  # fmt: skip
    for name in units or ["epochs"]:  # a spec may have several limits: the first that is reached
        with grid.cell():
            form_fields.widget("train", fields[name], hints[name])
    with grid.cell():
        form_fields.widget("train", fields["batch_size"], hints["batch_size"])
    form_fields.show_problems("train", [*MAIN_TRAIN, *LENGTHS])
    form_fields.folded("Schedule and optimizer", "train", config, SCHEDULE)
    form_fields.folded("Precision, memory and speed", "train", config, PRECISION)
    form_fields.folded("Evaluation, samples and checkpoints", "train", config, SAVING)


def _change_unit() -> None:
    chosen = st.session_state["new.unit"]
    for name in LIMITS:
        st.session_state[f"new.train.{name}"] = LENGTHS[name][1] if name == chosen else None


def method_help(method: Method) -> None:
    """What a learner may want to know of a method: what it trains, and what it cannot."""
    st.image(method.figure)
    st.markdown(escape_markdown(method.description))
    st.markdown(
        f"Formula: {escape_markdown(method.formula)}\n\nTrainable parameters: "
        f"{escape_markdown(method.parameter_formula)}\n\n"
        f"Source: {escape_markdown(method.source)}"
    )
    for feature in compatibility.FEATURES:
        reason = compatibility.unsupported_reason(getattr(method, feature.method_attribute))
        if reason:
            st.markdown(f":material/block: **{feature.title}**: {escape_markdown(reason)}")


def matrix() -> None:
    """What goes together, over all methods; the reasons are shown beside each method."""
    rows = compatibility.matrix(methods.all_methods())
    titles = [feature.title for feature in compatibility.FEATURES]
    st.dataframe(
        [
            {"method": row.title}
            | {
                title: "yes" if cell.yes else "–"
                for title, cell in zip(titles, row.cells.values(), strict=True)
            }
            for row in rows
        ],
        hide_index=True,
        key="matrix",
    )


def show_script() -> None:
    """The form as a script without the lab."""
    if form_problems.blocking():
        st.caption("Fix the problems above to see the script.")
        return
    spec = RunSpec.parse(form.value(), [])
    try:
        source = models.resolve(spec.model)
        checked = start_bar.checked_model() or spec.model  # the commit of the last check, if any
        revision = repository.split_id(checked)[1] if source.is_on_hub else ""
        known = repository.cached_commit("models", source.location, revision)
        is_pinned = source.is_on_hub and known is not None
        model = f"{source.location}#{known}" if is_pinned else source.location
        dataset = datasets.resolve(spec.data.dataset)
        system_prompt = prepare.system_prompt_of(spec, dataset)
        data = dataset.id if datasets.is_on_hub(dataset.id) else str(dataset.path)
        lines = script(spec, model, data, system_prompt)
    except LabError as error:
        st.caption(escape_markdown(str(error)))
        return
    st.code(lines, language=None, wrap_lines=True, height=320)
