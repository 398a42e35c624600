"""The Rank tab of Compare: which rank each run needed, by layer and by matrix."""

from __future__ import annotations

import math
import re

import numpy as np
import plotly.graph_objects as go
import streamlit as st

from lab import dataclass_json
from lab.background_job import JobRecord
from lab.compare.contestants import Contestant
from lab.errors import LabError
from lab.formatting import quantity
from lab.paths import RunDir
from lab.rank import measure, repair
from lab.rank.measure import RankProgress, RankReport
from lab.ui import chart_style, colours, job_panel, links, rank_conversion
from lab.ui.chart_style import View, figure, finish, is_dark, line, literal
from lab.ui.compare_runs import name_of, plain_name
from lab.ui.fragments import fragment
from lab.ui.markdown_safety import escape_markdown, run_action, tell
from lab.ui.rank_conversion import shown_loss

LAYER = re.compile(r"\.(\d+)\.(.+)\.weight$")
LOOK_S = 1.0
MAX_TICKS = 10  # layers that the map labels


def show(shown: list[Contestant]) -> None:
    """One run's updates, or those of two held against each other; measured when asked for."""
    ready = [each for each in shown if each.first.run.artifact.is_dir()]
    if not ready:
        st.caption("None of the runs shown has a result yet.")
        return
    row = st.container(horizontal=True, vertical_alignment="bottom")
    position = row.selectbox(
        "Run", range(len(ready)), format_func=lambda index: plain_name(ready[index]),
        key="compare.rank.run", width=240,
    )  # fmt: skip
    others = [None, *(index for index in range(len(ready)) if index != position)]
    against = row.selectbox(
        "Similarity to", others, key="compare.rank.other", width=240,
        format_func=lambda index: "none" if index is None else plain_name(ready[index]),
    )  # fmt: skip
    run = ready[position].first.run
    other = None if against is None else ready[against].first.run
    report = measure.look(run, other)
    if isinstance(report, RankReport):
        _report(report, ready[position])
        return
    _ask(run, other, report)


def _ask(run: RunDir, other: RunDir | None, progress: RankProgress | None) -> None:
    if progress is not None and progress.error:
        st.error(escape_markdown(progress.error), icon=":material/error:")
    if progress is not None and progress.is_running:
        _wait(run, other)
        return
    st.markdown(
        "The singular values of every update show which rank the run needed. This loads the base "
        "and the result in a separate process; it takes seconds for an adapter, minutes for full "
        "fine-tuning."
    )
    if st.button("Measure the rank", icon=":material/bar_chart:", key="compare.rank.start"):
        try:
            measure.start(run, other)
        except LabError as error:
            tell(error)
            return
        st.rerun()


@fragment(run_every=LOOK_S)
def _wait(run: RunDir, other: RunDir | None) -> None:
    progress = measure.look(run, other)
    if not isinstance(progress, RankProgress) or progress.error:
        st.rerun()
        return
    matrices = f" · {quantity(progress.done, 'matrix', 'matrices')}" if progress.done else ""
    st.markdown(f":material/progress_activity: {escape_markdown(progress.phase)}{matrices}")


def _report(report: RankReport, contestant: Contestant) -> None:
    st.markdown(f"#### {name_of(contestant)} needed r ≈ {report.needed} of {report.rank}")
    st.caption(
        f"{quantity(len(report.matrices), 'matrix', 'matrices')}; "
        f"{100 * report.threshold:g} % of the energy (sum of squared singular values) of all "
        f"updates together takes {quantity(report.needed, 'singular value')} of each."
    )
    dark = is_dark()
    grid = st.grid(2, min_column_width=380, gap="small", border=True)
    with grid.cell():
        st.markdown("**Needed rank by layer**")
        chart_style.show(
            heat_map(report, dark), "compare.rank.map", "Rank that each matrix needed, by layer"
        )
    with grid.cell():
        names = [matrix.name for matrix in sorted(report.matrices, key=lambda each: -each.norm)]
        name = st.selectbox("Matrix", names, key=f"compare.rank.matrix.{report.run}")
        chart_style.show(
            spectrum_chart(report, name, contestant, dark), "compare.rank.spectrum",
            f"Singular values of the update of {name}",
        )  # fmt: skip
        matrix = next(each for each in report.matrices if each.name == name)
        st.caption(
            f"needed {matrix.needed} of {matrix.rank} · effective rank {matrix.effective:.1f} · "
            f"stable rank {matrix.stable:.1f} · condition number {matrix.condition:.3g}"
        )
    if report.similarity:
        values = np.array(list(report.similarity.values()))
        st.markdown(
            f"Similarity of the updates' column spaces: mean **{values.mean():.2f}**, from "
            f"{values.min():.2f} to {values.max():.2f} (0: nothing in common, 1: identical)."
        )
    st.code(f"python -m lab rank {report.run} {report.other} --intruders".replace("  ", " "),
            language=None, wrap_lines=True)  # fmt: skip
    _repair(contestant.first.run)
    rank_conversion.show(contestant.first.run)


def _repair(run: RunDir) -> None:
    """Reduce the intruder dimensions of a LoRA, and what that has won and cost."""
    st.markdown("**Intruder dimensions**")
    if reason := repair.why_not(run):
        st.caption(f":material/block: No repair: {escape_markdown(reason)}")
        return
    st.caption(
        "Leading singular vectors of the result that resemble none of the base's; they are "
        "reported to reduce general ability (arXiv:2410.21228). A repair scales "
        "them down in a new result."
    )
    if job_panel.follow(repair.job_file(run), "compare.rank.repair.stop", _repaired):
        return
    if st.button("Repair into a new result", icon=":material/build:", key="compare.rank.repair"):
        run_action(lambda: repair.start(run))


def _repaired(job: JobRecord) -> None:
    outcome = dataclass_json.read(repair.Repair, job.result)
    if outcome is None:
        return
    before, after = outcome.before, outcome.after
    st.markdown(
        f"{quantity(outcome.intruders, 'intruder dimension')} in "
        f"{quantity(outcome.matrices, 'matrix', 'matrices')} reduced: "
        f"evaluation loss {shown_loss(before.loss)} → **{shown_loss(after.loss)}**, "
        f"forgetting {shown_loss(before.forgetting)} → "
        f"**{shown_loss(after.forgetting)}** nats per token."
    )
    if outcome.note:
        st.caption(f"The evaluation loss was not measured. {escape_markdown(outcome.note)}")
    st.page_link(
        links.page("results"), label="Open the new result", icon=":material/inventory_2:",
        query_params={"run": outcome.run},
    )  # fmt: skip


def cells(report: RankReport) -> tuple[list[int], list[str], np.ndarray]:
    """(layers, kinds of matrices, (layers, kinds) needed ranks with NaN where there is none)."""
    places = [
        (int(match[1]), match[2], matrix.needed)
        for matrix in report.matrices
        if (match := LAYER.search(matrix.name))
    ]
    layers = sorted({layer for layer, _, _ in places})
    kinds = list(dict.fromkeys(kind for _, kind, _ in places))
    table = np.full((len(layers), len(kinds)), np.nan)
    for layer, kind, needed in places:
        table[layers.index(layer), kinds.index(kind)] = needed
    return layers, kinds, table


def heat_map(report: RankReport, dark: bool) -> go.Figure:
    layers, kinds, table = cells(report)
    chart = figure(View(dark=dark), x="", y="layer", height=320)
    low, high = ("#16262b", "#5fd0c6") if dark else ("#eef5f5", "#0b6b67")
    chart.add_trace(
        go.Heatmap(
            z=table, x=[literal(kind.rpartition(".")[2]) for kind in kinds], y=layers, zmin=0,
            zmax=report.rank if report.rank <= 64 else None, colorscale=[[0, low], [1, high]],
            hovertemplate="layer %{y} · %{x}: r %{z}<extra></extra>",
            colorbar={"thickness": 10, "tickfont": {"size": 12}}, xgap=1, ygap=1,
        )
    )  # fmt: skip
    chart.layout.hovermode = "closest"
    # with few layers plotly would also label the half ones between them
    chart.update_yaxes(dtick=max(1, math.ceil(len(layers) / MAX_TICKS)))
    return chart


def spectrum_chart(report: RankReport, name: str, contestant: Contestant, dark: bool) -> go.Figure:
    matrix = next(each for each in report.matrices if each.name == name)
    chart = figure(View(dark=dark), x="singular value", y="size", height=240)
    values = np.array(matrix.values)
    line(
        chart, np.arange(1, len(values) + 1), values, "singular value",
        colours.hex_of(contestant.first.entry.colour, dark), dots=True,
    )  # fmt: skip
    return finish(chart, [])
