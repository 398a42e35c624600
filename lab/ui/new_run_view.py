"""The parts of the New run page."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import streamlit as st

from lab import formatting, methods, paths, presets
from lab.atomic_files import read_object
from lab.data import catalog as datasets
from lab.data import hub, prepare
from lab.errors import MOST_PROBLEMS, LabError, Problem, SpecError
from lab.export.script import script
from lab.formatting import short_id
from lab.methods import Method
from lab.methods.parts import compatibility
from lab.models import catalog as models
from lab.preflight.client import planner
from lab.runs import index, submissions
from lab.spec import RunSpec
from lab.ui import form, hub_fields, links, submit
from lab.ui.markdown_safety import escape_markdown, plain, tell
from lab.ui.waiting import wait

MORE_DATA = [
    "format",
    "columns",
    "slots",
    "bad_rows",
    "template",
    "template_args",
    "template_date",
    "objective",
    "max_examples",
    "held_out",
    "truncation",
    "bucketing",
    "general_mix",
    "general_set",
    "system_prompt",
]
MAIN_TRAIN = ["learning_rate", "batch_size", "epochs", "max_steps"]
SCHEDULE = [
    "max_tokens",
    "max_seconds",
    "max_flops",
    "schedule",
    "warmup",
    "optimizer",
    "momentum",
    "weight_decay",
    "max_grad_norm",
    "accumulation",
    "seed",
]
PRECISION = [
    "precision",
    "adapter_precision",
    "activation_checkpointing",
    "checkpointed_layers",
    "loss",
    "compile",
]
SAVING = [
    "eval_every",
    "early_stopping",
    "probe",
    "sample_every",
    "save_every",
    "keep_best",
    "keep_last",
]


def show_already_started(ticket: str) -> None:
    """Say so if this form has started its run already (a reload, or a step back)."""
    run = submissions.run_of(ticket)
    if run is None:
        return
    with st.container(border=True, horizontal=True, vertical_alignment="center"):
        st.markdown(f":material/check_circle: This form has started **{escape_markdown(run.id)}**.")
        if st.button("Watch it", type="primary", key="watch"):
            links.open_run(run.id)
        st.button("Set up another", key="another", on_click=submit.renew)


def prefill_form() -> None:
    """Fill an untouched form: from `?from=RUN` if a run is to be repeated, else with defaults."""
    source = st.query_params.get("from", "")
    if source:
        trains_on = st.query_params.get("on", "") == "1"
        st.query_params.pop("on", None)
        del st.query_params["from"]  # once: what a person changes afterwards stays
        _fill_from(source, trains_on=trains_on)
    if "new.model" not in st.session_state:
        form.load(_spec_of(presets.PRESETS[0].changes))
        st.session_state["new.preset"] = presets.PRESETS[0].name


def _fill_from(run_id: str, *, trains_on: bool) -> None:
    try:
        stored = read_object(paths.run_dir(run_id).spec) or {}
    except LabError as error:
        st.warning(escape_markdown(str(error)))
        return
    requested = stored.get("asked")
    resolved = RunSpec.from_stored(stored)
    spec = RunSpec.from_stored(requested) if isinstance(requested, dict) else resolved
    # what was asked for, so that "auto" stays auto, with the paths and the method as they ran
    again = dataclasses.replace(
        spec,
        name=f"{resolved.name} {'continued' if trains_on else 'again'}"[:120],
        start_from=f"run:{run_id}" if trains_on else spec.start_from,
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


def apply_preset() -> None:
    name = st.session_state.get("new.preset")
    if name:
        form.load(_spec_of(presets.get(name).changes))


def model_field() -> None:
    options = [f"builtin:{model.name}" for model in models.BUILT_IN]
    _choice("", "model", "Base model", options, "builtin:NAME, a hub id, or a folder.")
    chosen = [st.session_state.get(name) or "" for name in ("new.model", "new.data.dataset")]
    hub_fields.token_field(*map(str, chosen))


def start_field() -> None:
    """The result to begin with; shown where one was chosen, or there are any to choose from."""
    results = [f"run:{entry.id}" for entry in index.entries() if has_result(entry)]
    if not results and not st.session_state.get("new.start_from"):
        return
    _choice(
        "", "start_from", "Begin with", ["", *results],
        "The untouched base, or the result of a run with the same model and method.",
    )  # fmt: skip


def has_result(entry: index.RunSummary) -> bool:
    return entry.status.has_ended and (paths.run_dir(entry.id).artifact).is_dir()


def dataset_field() -> None:
    built_in = datasets.built_in()
    help = "builtin:NAME, upload:NAME, a hub id, or the path of a file on this machine."
    added = [upload.id for upload in datasets.uploads()] + hub.fetched()
    _choice("data", "dataset", "Dataset", [*(dataset.id for dataset in built_in), *added], help)
    st.page_link(links.page("data"), label="See it as the model does", icon=":material/dataset:")
    chosen = st.session_state.get("new.data.dataset")
    hub_fields.fetch_panel(str(chosen or ""))
    for dataset in built_in:
        if dataset.id == chosen:
            st.caption(f"{dataset.card['rows']} rows. {escape_markdown(dataset.card['summary'])}")


def _choice(section: str, name: str, label: str, options: list[str], help: str) -> None:
    """A list that also takes what a person types."""
    key = form.key(section, name)
    current = st.session_state.get(key)
    if current and current not in options:
        options = [current, *options]
    st.selectbox(
        label, options, key=key, help=help, accept_new_options=True, persist_state="session",
        format_func=lambda option: str(plain(option)) or "the untouched base",
    )  # fmt: skip
    form.problem(f"{section}.{name}" if section else name)


def method_field() -> Method:
    st.selectbox(
        "How to train",
        methods.names(),
        format_func=lambda name: methods.get(name).title,
        key="new.method.name",
        persist_state="session",
    )
    form.problem("method.name")
    method = methods.get(st.session_state["new.method.name"])
    st.caption(escape_markdown(method.summary))
    form.problem("method")
    return method


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
    """What goes together, over all methods; the reasons stand beside each method."""
    rows = compatibility.matrix(methods.all_methods())
    titles = [feature.title for feature in compatibility.FEATURES]
    st.dataframe(
        [
            {"method": row["title"]}
            | {
                title: "yes" if cell["yes"] else "–"
                for title, cell in zip(titles, row["cells"].values(), strict=True)
            }
            for row in rows
        ],
        hide_index=True,
        key="matrix",
    )


def parsed() -> tuple[RunSpec, list[Problem]]:
    """The form as a spec, with the problems that need no model to be seen."""
    problems: list[Problem] = []
    return RunSpec.parse(form.value(), problems), problems


def summary() -> Iterator[tuple[str, str]]:
    """(icon, sentence) of what the run will do."""
    spec, _ = parsed()
    train, data = spec.train, spec.data
    method = methods.get(spec.method["name"])
    rows = train.batch_size * train.accumulation
    model, dataset = (escape_markdown(short_id(name)) for name in (spec.model, data.dataset))
    yield "deployed_code", f"**{escape_markdown(method.title)}** of {model}"
    yield (
        "dataset",
        f"on {dataset}, {data.eval_fraction:.0%} held out to measure it"
        if data.eval_fraction
        else f"on all of {dataset}, nothing held out",
    )
    budgets = {
        "max_steps": "{:,} steps",
        "max_tokens": "{:,} tokens",
        "max_seconds": "{:,.0f} seconds",
        "max_flops": "{:.2g} FLOPs",
    }
    limits = [
        sentence.format(getattr(train, name))
        for name, sentence in budgets.items()
        if getattr(train, name) is not None
    ]
    length = " or ".join(limits) or f"{train.epochs:g} passes over the data"
    yield "timer", f"for {length}, {rows} rows a step, up to {data.max_length:,} tokens a row"
    if spec.start_from:
        yield "step_into", f"beginning with the result of {escape_markdown(spec.start_from)}"
    rate = train.learning_rate
    shown = f"{method.default_lr:g} (the method's own)" if rate == "auto" else f"{rate:g}"
    yield "speed", f"learning rate {shown}, {train.schedule}, warm-up {train.warmup:.0%}"


def show_problems() -> None:
    """The count of problems, and those whose field is not on the page."""
    problems: dict[str, str] = st.session_state.get("new.problems", {})
    if not problems:
        return
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    listed = list(problems.items())[:MOST_PROBLEMS]
    lines = "\n".join(
        f"- **{escape_markdown(field)}** {escape_markdown(text)}" for field, text in listed
    )
    if len(problems) > MOST_PROBLEMS:
        lines += f"\n- and {len(problems) - MOST_PROBLEMS} more"
    st.error(f"Nothing was started: {count}.\n\n{lines}", icon=":material/error:")


def check() -> None:
    """Ask the planner about the form as it is; keep what it says."""
    st.session_state["new.checked"] = None
    try:
        spec = form.value()
        label = "Checking the model, the data and the settings …"
        checked = wait(label, lambda: planner.check(spec))
    except SpecError as error:
        submit.note(error)
        st.rerun()
    except LabError as error:
        tell(error)
        return
    had_problems = bool(st.session_state.get("new.problems"))
    st.session_state["new.problems"] = {}
    st.session_state["new.checked"] = spec, checked
    if had_problems:
        st.rerun()


def show_plan() -> None:
    """What the last check found, as long as the form is still the same."""
    form_value, checked = st.session_state.get("new.checked") or (None, None)
    if checked is None or form_value != form.value():
        return
    stats, memory, disk = checked.stats, checked.forecast.memory, checked.forecast.disk
    st.success("Ready to start.", icon=":material/check_circle:")
    for warning in stats.warnings:
        st.warning(escape_markdown(warning), icon=":material/warning:")
    trains = f"{formatting.count(memory.trainable)} of {formatting.count(memory.parameters)}"
    st.markdown(
        f":material/memory_alt: about **{formatting.size(memory.peak_bytes)}** at the peak "
        f"({escape_markdown(memory.peak_phase)}; {memory.how.in_words})\n\n"
        f":material/tune: trains {trains} parameters\n\n"
        f"{_paragraph(hub_fields.download_in_words(checked.forecast.download))}"
        f":material/hard_drive: up to {formatting.size(disk.total)} of disk\n\n"
        f":material/dataset: {stats.examples:,} examples, about "
        f"{stats.tokens_per_row:.0f} tokens each, {stats.loss_tokens_per_row:.0f} learned"
    )


def _paragraph(text: str) -> str:
    return f"{text}\n\n" if text else ""


def show_script() -> None:
    """The form as a script without the lab."""
    spec, problems = parsed()
    if problems:
        st.caption("The script appears when the form has no problems.")
        return
    try:
        model = models.resolve(spec.model).location
        dataset = datasets.resolve(spec.data.dataset)
        system_prompt = prepare.system_prompt_of(spec, dataset)
        lines = script(spec, model, str(dataset.path), system_prompt)
    except LabError as error:
        st.caption(escape_markdown(str(error)))
        return
    st.code(lines, language="python", height=320)
