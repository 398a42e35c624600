"""The Results page above its tabs: which result, its sizes with downloads, and what was proven."""

from __future__ import annotations

import streamlit as st

from lab import formatting, methods, paths
from lab.advise import worth_knowing
from lab.atomic_files import finite_number, part, read_object, size_of
from lab.background_job import JobRecord
from lab.errors import LabError
from lab.export import exports
from lab.paths import RunDir
from lab.runs import index
from lab.spec import RunSpec
from lab.ui import cards as shared_cards
from lab.ui import colours, downloads, links, run_picker, titles
from lab.ui.fragments import fragment
from lab.ui.frame import end_page
from lab.ui.markdown_safety import escape_markdown, run_action

LOOK_S = 1.0
WORDS = {
    "merged": ("Merged", "Merge and prove", "One model folder that any program loads."),
    "gguf": ("GGUF", "Convert and prove", "One file for llama.cpp and Ollama."),
}
FORMATS = {
    "bfloat16": "16 bits (bfloat16)", "float32": "32 bits (float32)", "Q8_0": "8 bits (Q8_0)",
    "F16": "16 bits (F16)", "F32": "32 bits (F32)",
}  # fmt: skip


def choose() -> RunDir:
    """The result that the address names, else the newest one. Without a result it says how to get
    one, and ends the page."""
    ids = [run.id for run in paths.all_runs() if run.artifact.is_dir()]
    if not ids:
        st.info("No results yet. A run that has ended leaves one.", icon=":material/info:")
        st.page_link(links.page("new_run"), label="New run", icon=":material/add_circle:")
        end_page()
    requested = st.query_params.get("run", "")
    if requested and requested not in ids:
        st.warning(
            f"{escape_markdown(requested[:80])} has no result; showing another one.",
            icon=":material/warning:",
        )
    st.query_params["run"] = requested if requested in ids else ids[0]
    return paths.run_dir(st.query_params["run"])


def pick(run: RunDir) -> None:
    """The result that is shown, a way to another one, and to its other pages."""
    ids = [each.id for each in paths.all_runs() if each.artifact.is_dir()]
    run_picker.choose(ids, run.id, "results.run")
    for page, label, icon in (("chat", "Chat", "forum"), ("monitor", "Monitor", "monitoring")):
        st.page_link(
            links.page(page), label=label, icon=f":material/{icon}:",
            query_params={"run": run.id}, width="content",
        )  # fmt: skip


def title(run: RunDir) -> None:
    """The run with its colour and state."""
    entry = index.entry(run)
    about = (
        f"{titles.method({'name': entry.method})} · {titles.model(entry.model)} on "
        f"{titles.dataset(entry.dataset)} · {formatting.when(entry.created)}"
    )
    with st.container(horizontal=True, vertical_alignment="center"):
        name = escape_markdown(entry.name or run.id)
        st.markdown(f"### {colours.dot(entry.colour)} {name}", width="content")
        shared_cards.state_badge(entry.status.state)
        st.caption(escape_markdown(about), width="content")


def cards(run: RunDir) -> None:
    """What can be taken away; while an export is made, they are drawn again and again."""
    was_active = exports.active(run) is not None

    @fragment(run_every=LOOK_S if was_active else None)
    def look() -> None:
        grid = st.grid(3, min_column_width=260, border=True)
        with grid.cell():
            _result(run)
        for kind in exports.TYPES:
            with grid.cell():
                _export(run, kind)
        if (exports.active(run) is not None) != was_active:
            st.rerun()  # the whole page: the proof and the tabs follow

    look()


def _result(run: RunDir) -> None:
    method = methods.get(RunSpec.of_run(run).method["name"])
    st.caption("WHOLE MODEL" if method.saves_whole_model else "ADAPTER")
    _size(formatting.size(size_of(run.artifact)))
    st.caption(
        "Weights as safetensors with tokenizer, chat template, model card and receipt."
        if method.saves_whole_model
        else "As safetensors with tokenizer, chat template, model card and receipt. It needs its "
        "base model."
    )
    proof = part(read_object(run.artifact / "receipt.json"), "proof")
    if proof:
        is_proven = proof.get("equal") is True and not proof.get("error")
        loaded_with = escape_markdown(str(proof.get("loaded_with", "")))
        st.caption(
            f":material/verified: Read back with {loaded_with} when it was written"
            if is_proven
            else ":red[:material/warning: Read back, it differs from the trained model: see "
            "Files and hashes]"
        )
    downloads.button("Download ZIP", run, primary=True)


def _size(text: str) -> None:
    st.markdown(f"### {text}")


def _export(run: RunDir, kind: str) -> None:
    heading, _, meaning = WORDS[kind]
    st.caption(heading.upper())
    reason, way_out = exports.why_not(run, kind)
    weight_type = chosen_type(run, kind)
    job = exports.record(run, kind, weight_type)
    is_done = job is not None and job.finish == "done"
    if reason and not is_done:
        _size("–")
        st.caption(f":material/block: {escape_markdown(reason)}")
        if way_out:
            st.caption(escape_markdown(way_out))
        return
    if job is not None and is_done:
        _size(formatting.size(finite_number(job.result.get("bytes"))))
    else:
        try:
            about = formatting.size(exports.predicted_bytes(run, kind, weight_type))
        except (LabError, OSError):
            about = "–"  # a base of the Hub that is not here
        _size(f"about {about}")
    st.selectbox(
        "Weights", exports.TYPES[kind], key=_key(run, kind), format_func=FORMATS.get,
        label_visibility="collapsed", disabled=job is not None and job.is_active,
        persist_state="session",
    )  # fmt: skip
    if kind == "merged":
        meaning += f" {worth_knowing.of_result(RunSpec.of_run(run).method['name'])}"
    st.caption(escape_markdown(meaning))
    _state(run, kind, weight_type, job)


def _key(run: RunDir, kind: str) -> str:
    return f"results.{kind}.{run.id}"


def chosen_type(run: RunDir, kind: str) -> str:
    """The weight type that the page shows: what was chosen, else what is made or being made."""
    key = _key(run, kind)
    if key not in st.session_state:
        types = exports.TYPES[kind]
        begun = [name for name in types if exports.record(run, kind, name) is not None]
        st.session_state[key] = (begun or types)[0]
    return str(st.session_state[key])


def _state(run: RunDir, kind: str, weight_type: str, job: JobRecord | None) -> None:
    """What is known of the export, and what can be done."""
    begin = WORDS[kind][1]
    if job is not None and job.is_active:
        text = f"{job.phase} · {formatting.duration(job.seconds)}"
        st.progress(exports.fraction(kind, job), escape_markdown(text))
        if st.button("Stop", icon=":material/stop_circle:", key=f"results.stop.{kind}"):
            run_action(lambda: exports.stop(run))
        return
    if job is not None and job.finish == "failed":
        st.markdown(f":red[:material/error: {escape_markdown(job.error)}]")
        if job.hint:
            st.caption(escape_markdown(job.hint))
        if kind == "merged" and weight_type != "float32" and "answers differently" in job.error:
            if st.button("Merge in float32", key="results.merged.float32"):
                st.session_state.pop(_key(run, kind))
                run_action(lambda: exports.start(run, kind, "float32"))
    if job is not None and job.finish == "interrupted":
        st.caption(":material/warning: It was interrupted. The partial file is not used.")
    if job is not None and job.finish == "done":
        if not exports.is_current(run, job):
            st.caption(":orange[:material/history: Made from an earlier result of this run.]")
        with st.container(horizontal=True, vertical_alignment="center"):
            label = "Download ZIP" if kind == "merged" else "Download"
            downloads.button(label, run, f"{kind}-{weight_type}")
            _begin(run, kind, weight_type, "Export again", again=True)
        return
    others = exports.active(run)
    _begin(run, kind, weight_type, begin if job is None else "Try again", busy=others is not None)


def _begin(
    run: RunDir, kind: str, weight_type: str, label: str, *, again: bool = False, busy: bool = False
) -> None:
    if st.button(
        label, key=f"results.{kind}", icon=":material/refresh:" if again else None,
        type="tertiary" if again else "secondary", disabled=busy,
        help="Another export of this run is in progress." if busy else None,
    ):  # fmt: skip
        run_action(lambda: exports.start(run, kind, weight_type))


def proofs(run: RunDir) -> None:
    """What reading the exports back has shown, each figure beside its bound."""
    for kind in exports.TYPES:
        if exports.why_not(run, kind)[0]:
            continue
        weight_type = chosen_type(run, kind)
        job = exports.record(run, kind, weight_type)
        if job is not None and job.finish == "done":
            with st.container(border=True):
                _proof(kind, weight_type, job)


def _proof(kind: str, weight_type: str, job: JobRecord) -> None:
    proof = part(dict(job.result), "proof")
    of_what = "MERGE" if kind == "merged" else "GGUF FILE"
    st.caption(f"PROOF OF THE {of_what} · {FORMATS[weight_type]}")
    is_equal = kind == "gguf" or proof.get("verdict") == "equal"
    st.markdown(
        ":green[:material/verified:] **Equal within bounds**: read back from disk, its outputs "
        "match the trained model's."
        if is_equal
        else ":orange[:material/warning:] **It differs**, within what is kept: compare its answers "
        "before you use it."
    )
    bounds = part(proof, "bounds")
    if kind == "gguf":
        bounds = {"spread": proof.get("bound")}
    grid = st.grid(3, min_column_width=240)
    same, kl = finite_number(proof.get("same_top")), finite_number(proof.get("kl"))
    other = finite_number(bounds.get("other_top"))
    share = finite_number(proof.get("share_of_spread"))
    with grid.cell():
        largest = finite_number(proof.get("largest_difference"))
        _figure(
            "Largest logit difference", "–" if largest is None else f"{largest:.2g}",
            share, finite_number(bounds.get("spread")), "{:.2g} of the logits' spread",
        )  # fmt: skip
    with grid.cell():
        _figure(
            "Same top token", "–" if same is None else f"{100 * same:.1f} %",
            None if same is None else 1 - same, other, "{:.2g} of the tokens differ",
        )  # fmt: skip
    with grid.cell():
        _figure(
            "KL divergence", "–" if kl is None else f"{kl:.2g}", kl,
            finite_number(bounds.get("kl")), "{:.2g} nats per token",
        )  # fmt: skip
    rows = ""
    if proof.get("rows"):
        rows = f"{formatting.quantity(proof['rows'], 'row')} ({proof.get('rows_from') or '–'}), "
    tokens = formatting.quantity(proof.get("tokens"), "token")
    versions = ", ".join(f"{name} {text}" for name, text in part(proof, "versions").items())
    base = f" · base in {proof['base']}" if proof.get("base") else ""
    took = f" · took {formatting.duration(job.seconds)}"
    st.caption(
        escape_markdown(
            f"{rows}{tokens}{base} · {formatting.when(job.ended)}{took}"
            + (f" · {versions}" if versions else "")
        )
    )
    if job.result.get("note"):
        st.caption(escape_markdown(job.result["note"]))


def _figure(
    name: str, value: str, measured: float | None, bound: float | None, measure: str
) -> None:
    """A figure, and how much of its bound it takes as a bar; `measure` is a format of numbers."""
    st.markdown(f"{name}: **{escape_markdown(value)}**")
    if measured is None or bound is None:
        return
    text = f"{measure.format(measured)}, at most {bound:g}"
    st.progress(min(1.0, measured / bound if bound else 1.0), escape_markdown(text))
