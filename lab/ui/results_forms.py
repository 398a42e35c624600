"""Forms of the Results page: combine adapters, push to the Hub, serve."""

from __future__ import annotations

import shlex

import streamlit as st

from lab import background_job, formatting, paths
from lab.atomic_files import finite_number, part
from lab.background_job import JobRecord
from lab.export import combine, exports, lora_form, push
from lab.hub import credentials
from lab.paths import RunDir
from lab.runs import index
from lab.ui import hub_fields, job_panel, links, results_view, run_picker
from lab.ui.markdown_safety import escape_markdown, plain, run_action

LOOK_S = 1.0


def combine_form(run: RunDir) -> None:
    """Choose partners, weights and a type; the new result is made in the background."""
    if reason := lora_form.why_not(run):
        st.caption(f":material/block: This result cannot be combined: {escape_markdown(reason)}")
        return
    model = index.entry(run).model
    partners = [
        other.id
        for other in paths.all_runs()
        if other.id != run.id
        and other.artifact.is_dir()
        and index.entry(other).model == model
        and not lora_form.why_not(other)
    ]
    if not partners:
        st.caption("There is no other adapter of the same base yet: train a second one.")
        st.page_link(links.page("new_run"), label="New run", icon=":material/add_circle:")
        return
    st.caption(
        "Adapters of one base become a new LoRA, without training. It is read back and verified, "
        "then listed with the results."
    )
    chosen: list[str] = st.multiselect(
        "Combine with", partners, key="results.combine.with", format_func=run_picker.short_title,
        max_selections=combine.MAX_RESULTS - 1, placeholder="Choose results",
    )  # fmt: skip
    names = [run.id, *chosen]
    grid = st.grid(max(2, len(names)), min_column_width=160)
    weights = []
    for position, name in enumerate(names):
        with grid.cell():
            title = str(plain(index.entry(paths.run_dir(name)).name or name))
            weights.append(
                st.number_input(
                    f"Weight of {title}"[:60],
                    -10.0,
                    10.0,
                    round(1 / len(names), 2),
                    0.05,
                    key=f"results.combine.weight.{position}.{len(names)}",
                )
            )
    grid = st.grid(3, min_column_width=200)
    with grid.cell():
        kind: str = st.selectbox("Type", list(combine.TYPES), key="results.combine.type")
    with grid.cell():
        default = plain(combine.default_name([paths.run_dir(each) for each in names]))
        name = st.text_input("Name", key="results.combine.name", placeholder=str(default))
    with grid.cell():
        density = 0.5
        if kind.startswith(("ties", "dare")):
            density = st.number_input(
                "Density", 0.01, 1.0, 0.5, 0.05, key="results.combine.density",
                help="Fraction of values to keep.",
            )  # fmt: skip
    st.caption(escape_markdown(combine.TYPES[kind]))
    energy = _energy(names)
    job = background_job.read(combine.job_file())
    is_busy = job is not None and job.is_active
    if st.button(
        "Combine", icon=":material/merge:", key="results.combine",
        disabled=not chosen or is_busy,
    ):  # fmt: skip
        combination = combine.Combination(
            tuple(names), tuple(map(float, weights)), kind, float(density), None, name or "",
            energy=energy,
        )  # fmt: skip
        run_action(lambda: combine.start(combination))
    job_panel.follow(combine.job_file(), "results.combine.stop", _combined)


def _energy(names: list[str]) -> float | None:
    """How much of each layer's update stays of adapters that are no LoRA; None where all are."""
    others = [name for name in names if not lora_form.is_lora(paths.run_dir(name))]
    if not others:
        return None
    titles = ", ".join(str(plain(index.entry(paths.run_dir(name)).name or name)) for name in others)
    energy = st.number_input(
        "Energy kept", lora_form.LEAST_ENERGY, lora_form.MOST_ENERGY, 0.95, 0.01,
        key="results.combine.energy", format="%.4g", width=200,
        help="Each layer gets the lowest rank that keeps this share of its update's energy.",
    )  # fmt: skip
    st.caption(escape_markdown(f"Converted to LoRA first: {titles}."))
    return float(energy)


def _combined(job: JobRecord) -> None:
    """The outcome of the last combination."""
    combined = dict(job.result)
    proof = part(combined, "proof")
    new = str(combined.get("run", ""))
    is_here = new in {run.id for run in paths.all_runs()}
    name = index.entry(paths.run_dir(new)).name if is_here else ""  # as the list of results says
    with st.container(border=True):
        st.markdown(
            f":green[:material/verified:] **{escape_markdown(name or new)}** · rank "
            f"{combined.get('rank')} · {formatting.size(finite_number(combined.get('bytes')))}"
        )
        difference, bound = (
            finite_number(proof.get(key)) for key in ("largest_difference", "tolerance")
        )
        if difference is not None and bound is not None:
            text = f"Read back: {difference:.2g} of the logits' spread, at most {bound:g}"
            st.progress(min(1.0, difference / bound), escape_markdown(text))
        apart = finite_number(combined.get("deviation"))
        if apart is not None:
            text = f"{100 * apart:.2g} % of its length from the weighted sum of the updates"
            st.progress(min(1.0, apart), escape_markdown(text))
        if combined.get("note"):
            st.caption(escape_markdown(combined["note"]))
        if is_here:
            st.page_link(
                links.page("results"), label="Open the new result", query_params={"run": new},
                icon=":material/inventory_2:",
            )  # fmt: skip


def push_form(run: RunDir) -> None:
    """Name and visibility, both confirmed before anything leaves this machine."""
    token = credentials.current()
    if token is None:
        st.caption("An upload needs a Hub token with write access.")
        hub_fields.token_field("account/name")
        return
    st.caption(
        f"With {escape_markdown(token.origin)}. The model card is included; local paths are "
        "removed."
    )
    done = [
        f"{kind}-{weight_type}"
        for kind, types in exports.TYPES.items()
        for weight_type in types
        if (job := exports.record(run, kind, weight_type)) is not None and job.finish == "done"
    ]
    grid = st.grid(3, min_column_width=220)
    with grid.cell():
        name = st.text_input("Repository", key="results.push.name", placeholder="account/name")
    with grid.cell():
        content: str = st.selectbox(
            "Content", [push.RESULT, *done], key="results.push.what",
            format_func=lambda content: _content(run, content),
        )  # fmt: skip
    with grid.cell():
        visibility = st.segmented_control(
            "Visibility", ["private", "public"], default="private", required=True,
            key="results.push.visibility",
        )  # fmt: skip
    update = st.checkbox(
        "Update an existing repository", key="results.push.update",
        help="Files of the same name are replaced by a new commit; the others stay.",
    )  # fmt: skip
    job = background_job.read(push.job_file(run))
    is_busy = job is not None and job.is_active
    with st.popover("Push …", icon=":material/cloud_upload:", disabled=not name or is_busy):
        st.markdown(
            f"Upload **{escape_markdown(_content(run, content))}** to "
            f"**{escape_markdown(name or '')}**, which will be **{visibility}**?"
        )
        if visibility == "public":
            st.caption(":material/public: Anyone can read it, with its model card.")
        if st.button(f"Push as {visibility}", key="results.push"):
            run_action(
                lambda: push.start(
                    run, name or "", content, private=visibility == "private", update=update
                )
            )
    job_panel.follow(push.job_file(run), "results.push.stop", _pushed)


def _content(run: RunDir, content: str) -> str:
    if content == push.RESULT:
        return "the trained model"
    kind, _, weight_type = content.partition("-")
    return f"{results_view.WORDS[kind][0]}, {results_view.FORMATS[weight_type]}"


def _pushed(job: JobRecord) -> None:
    commit = dict(job.result)
    kind = "private" if commit.get("is_private") else "public"
    st.markdown(
        f":green[:material/verified:] {escape_markdown(commit.get('url'))}, {kind}: "
        f"{commit.get('verified')} of {formatting.quantity(commit.get('files'), 'file')}: the "
        "same hash on the "
        f"Hub as here ({formatting.size(finite_number(commit.get('bytes')))})."
    )


def serve(run: RunDir) -> None:
    """Commands for OpenAI's API on this machine."""
    st.caption(
        "An OpenAI-compatible API on this machine only; the command prints its key. It runs until "
        "you stop it."
    )
    st.code(f"python -m lab serve run:{shlex.quote(run.id)}", language=None, wrap_lines=True)
    st.caption("Then, with the two environment variables that it prints:")
    st.code(
        "from openai import OpenAI\n\n"
        "client = OpenAI()  # reads OPENAI_BASE_URL and OPENAI_API_KEY\n"
        "reply = client.chat.completions.create(\n"
        f'    model="run:{run.id}",\n'
        '    messages=[{"role": "user", "content": "Who are you?"}],\n'
        ")\n"
        "print(reply.choices[0].message.content)",
        language=None,
        wrap_lines=True,
    )
