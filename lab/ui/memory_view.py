"""The answers of the Memory page: one sentence, the bars, and the tables below them in tabs."""

from __future__ import annotations

from typing import Any

import pandas as pd
import streamlit as st

from lab import formatting, methods
from lab.forecast import rules_of_thumb
from lab.paths import RunDir, runs
from lab.preflight.client import planner
from lab.runs import estimate_history, index
from lab.ui import chart_style, claim_links, memory_charts, settings_search_panel, titles
from lab.ui.charts import View
from lab.ui.markdown_safety import escape_markdown, plain, user_errors
from lab.ui.memory_charts import Bars
from lab.ui.memory_settings import Setting
from lab.ui.method_estimates import spec_of
from lab.ui.waiting import failure

TABS = ("Figures", "What still fits", "Fastest settings", "Rules of thumb", "Measured runs")
# a listed config of each size that the published table speaks of
SIZES = {7: "Mistral-7B-v0.3", 13: "Llama-2-13B", 34: "CodeLlama-34B", 70: "Llama-3-70B"}


def bars_of(setting: Setting) -> Bars:
    rows = setting.estimates.rows()
    size = rows[0].forecast.device_bytes if rows else None
    return Bars(rows, setting.device_name, size, setting.letter)


def show(settings: list[Setting], view: View, *, rules: bool) -> None:
    """The sentence and the bars; why there are none, where there are none."""
    shown = [bars for bars in map(bars_of, settings) if bars.rows]
    for setting in settings:
        estimates = setting.estimates
        failure(estimates, f"methods{setting.letter}", setting.prefix)
        if estimates.rows():
            continue
        if estimates.error is None and estimates.is_complete:
            reason = next(iter(estimates.refused.values()), "no method supports this model")
            st.error(escape_markdown(f"{setting.prefix}{reason}"), icon=":material/error:")
        elif not estimates.is_complete:
            st.info(f"{setting.prefix}Reading the model …", icon=":material/hourglass_top:")
    if not shown:
        return
    for sentence in headline(shown):
        st.markdown(sentence)
    for setting in settings:
        if not setting.estimates.is_complete:
            _progress(setting)
    _not_checkpointed(settings, shown)
    chart_style.show(
        memory_charts.chart(shown, view, rules=rules), "memory.bars",
        " ".join(headline(shown)).replace("*", ""),
    )  # fmt: skip


def _not_checkpointed(settings: list[Setting], shown: list[Bars]) -> None:
    """Which methods the setting does not reach."""
    if not any(setting.settings["checkpointing"] == "on" for setting in settings):
        return
    names = {row.name: row.title for bars in shown for row in bars.rows}
    titles = [
        title for name, title in names.items() if not methods.get(name).can_checkpoint_activations
    ]
    if titles:
        st.caption(f"Without activation checkpointing, since unsupported: {', '.join(titles)}.")


def _progress(setting: Setting) -> None:
    rows = setting.estimates.rows()
    total = len(methods.all_methods()) - len(setting.estimates.refused)
    traced = sum(row.forecast.memory.how.is_exact for row in rows)
    text = f"{setting.prefix}Quick estimates of {len(rows)} of {total} methods; {traced} traced …"
    st.progress(min(1.0, traced / max(1, total)), text=text)


def headline(settings: list[Bars]) -> list[str]:
    """What the bars say, in a sentence or two."""
    first = settings[0]
    usual, full = methods.get(methods.DEFAULT), methods.get("full")
    if len(settings) > 1:
        second = settings[1]
        before, after = first.peak(usual.name), second.peak(usual.name)
        if before is None or after is None:
            return []
        sentence = _ratio("Setting B", after, f"setting A for {usual.title}", before, "")
        return [sentence, f"{_fitting(first)} {_fitting(second)}".strip()]
    small, large = first.peak(usual.name), first.peak(full.name)
    if small is None or large is None:
        return [_fitting(first)]
    sentence = _ratio(usual.title, small, full.title.lower(), large, " here")
    return [f"{sentence} {_fitting(first)}"]


def _ratio(name: str, size: int, other: str, other_size: int, where: str) -> str:
    """ "LoRA needs 2.8 times less memory than full fine-tuning here: 21.4 GB instead of 60 GB." """
    figures = f"{formatting.size(size)} instead of {formatting.size(other_size)}"
    factor = max(size, other_size) / max(1, min(size, other_size))
    if factor < 1.05:
        return f"**{name} needs about as much memory as {other}{where}**: {figures}."
    more = "less" if size < other_size else "more"
    return f"**{name} needs {factor:.1f} times {more} memory than {other}{where}**: {figures}."


def _fitting(bars: Bars) -> str:
    """ "14 of 20 methods fit into RTX 4090 24GB (24.89 GB)." """
    verdicts = [row.forecast.memory.fits for row in bars.rows]
    if bars.device_bytes is None or all(verdict is None for verdict in verdicts):
        return ""
    letter = f"{bars.letter}: " if bars.letter else ""
    return (
        f"{letter}{sum(verdict is True for verdict in verdicts)} of "
        f"{formatting.quantity(len(verdicts), 'method')} {'fits' if len(verdicts) == 1 else 'fit'} "
        f"into {escape_markdown(bars.device_name)} ({formatting.size(bars.device_bytes)})."
    )


def figures(settings: list[Setting]) -> None:
    """The bars as figures, what the second setting changes, and what has no figure."""
    shown = [bars for bars in map(bars_of, settings) if bars.rows]
    if not shown:
        st.caption("No estimates yet.")
        return
    if len(shown) > 1:
        frame = pd.DataFrame(memory_charts.differences(*shown))
        gb_column = st.column_config.NumberColumn(format="%.2f")
        config: dict[str, Any] = {"A (GB)": gb_column, "B (GB)": gb_column}
        config["B less A (GB)"] = st.column_config.NumberColumn(format="%+.2f")
        st.dataframe(
            frame, hide_index=True, height="content", column_config=config, placeholder="–"
        )
    lines = memory_charts.table(shown)
    st.dataframe(
        pd.DataFrame(lines).style.apply(_inks, subset=["fits"]),
        hide_index=True,
        placeholder="–",
        height="content",
        column_config={
            name: st.column_config.NumberColumn(format="%.2f")
            for name in lines[0]
            if name.endswith("(GB)")
        }
        | {
            "method": st.column_config.TextColumn(width=170),
            "fits": st.column_config.TextColumn(width=80),
            "tokens/s": st.column_config.NumberColumn(format="localized"),
            "Wh per million tokens": st.column_config.NumberColumn(format="%.1f"),
            "trained model (GB)": st.column_config.NumberColumn(format="%.3f"),
        },
    )
    st.download_button(
        "Download CSV", memory_charts.as_csv(lines), "memory.csv", "text/csv",
        icon=":material/download:", key="memory.csv", on_click="ignore",
    )  # fmt: skip
    for setting in settings:
        for name, why in setting.estimates.refused.items():
            text = f"{setting.prefix}{methods.get(name).title}: {why}"
            st.caption(escape_markdown(text))
    for bars in shown:
        for row in bars.rows:
            why = row.forecast.memory.trace_error
            if why:
                message = f"{row.title}: not known, the step cannot be traced ({why})."
                st.caption(escape_markdown(message))


def _inks(verdicts: pd.Series) -> list[str]:
    from lab.ui.chart_style import is_dark

    colours = View(dark=is_dark()).colours
    inks = {"✓ yes": colours[3], "✕ no": colours[4]}
    return [f"color: {inks[verdict]}" if verdict in inks else "" for verdict in verdicts]


def rules(setting: Setting) -> None:
    """What four public articles say of such a run; their table from 7B to 70B on request."""
    rows = setting.estimates.rows()
    st.caption(
        "What four public articles claim for this model, next to the estimate. Most rules ignore "
        "sequence length and batch size."
    )
    lines = memory_charts.held_against(rows)
    if lines:
        gb_column = st.column_config.NumberColumn(format="%.1f")
        st.dataframe(
            [line | {"claim": claim_links.url(line["claim"])} for line in lines],
            hide_index=True, height="content",
            column_config={
                "claim": st.column_config.LinkColumn(display_text=r"rule=(.*)", width=120),
                "rule (GB)": gb_column,
                "estimate (GB)": gb_column,
                "error": st.column_config.NumberColumn(format="percent"),
            },
        )  # fmt: skip
    answered, sizes = st.session_state.get("memory.by_size") or (None, [])
    question = {key: value for key, value in setting.settings.items() if key != "model"}
    if st.button("Estimate 7B to 70B", key="memory.sizes", icon=":material/calculate:"):
        with user_errors(), st.spinner("Estimating four models …"):
            sizes = by_size(setting.settings)
        answered = question
        st.session_state["memory.by_size"] = question, sizes
    if answered == question:
        st.caption(
            f"Claim {claim_links.link('C3')} for 7B to 70B, and our estimate (outline of the "
            f"step), in GB, at rank {question['rank']}, batch size {question['rows']}, "
            f"{question['length']} tokens."
        )
        st.dataframe(sizes, hide_index=True)


def by_size(settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The published table of four sizes, each figure next to the estimate, in GB."""
    lines = []
    for size, published in rules_of_thumb.C3_TABLE.items():
        line: dict[str, Any] = {"size": f"{size}B", "model": SIZES[size]}
        for method, gigabytes in zip(methods.standard_methods(), published, strict=True):
            spec = spec_of(settings | {"model": f"config:{SIZES[size]}"}, method)
            forecast = planner.estimate(spec, {"kind": "cuda"}, shadow=False)
            line[f"{method.title} (published)"] = gigabytes
            line[f"{method.title} (estimate)"] = round(forecast.memory.peak_bytes / 1e9, 1)
        lines.append(line)
    return lines


def measured() -> None:
    """The finished runs of this lab: their estimate next to what was measured."""
    lines = measured_runs()
    if not lines:
        st.caption("No finished run here has a measured peak yet.")
        return
    for device, title in (("cuda", "On a GPU"), ("cpu", "On the CPU")):
        history = estimate_history.error_history(device)
        if history is not None:
            st.caption(f"{title}, {history.in_words}.")
    gb_column = st.column_config.NumberColumn(format="%.2f")
    st.dataframe(
        lines, hide_index=True,
        column_config={"estimate (GB)": gb_column, "measured (GB)": gb_column},
    )  # fmt: skip


def measured_runs(most: int = 50) -> list[dict[str, Any]]:
    """The newest of them, newest first. A bound is not off: it holds or it does not."""
    lines: list[dict[str, Any]] = []
    for entry in index.entries():
        if len(lines) == most:
            break
        error = estimate_history.estimate_error(RunDir(runs() / entry.id))
        if error is None:
            continue
        lines.append(
            {
                "run": plain(entry.name or entry.id),
                "method": titles.method(entry.method_options),
                "model": titles.model(entry.model),
                "device": "CPU" if error.device == "cpu" else "GPU",
                "estimate (GB)": error.predicted / 1e9,
                "measured (GB)": error.measured / 1e9,
                "estimate against measured": error.in_words,
            }
        )
    return lines


def fastest(setting: Setting, method: methods.Method) -> None:
    st.caption(f"For {escape_markdown(method.title)} on {escape_markdown(setting.device_name)}.")
    settings_search_panel.for_device(spec_of(setting.settings, method), setting.device)
