"""Exports of Compare: one HTML file that works offline, the figures as CSV, all of it as JSON."""

from __future__ import annotations

import json
import sys
from typing import Any

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from lab import paths
from lab.compare import figures, report
from lab.compare.contestants import Contestant, contestants
from lab.compare.curves import axes_of, curve, measures_of
from lab.compare.trade_offs import PLANES, axes_with_values
from lab.ui import compare_curves, compare_plots, compare_price
from lab.ui.chart_style import View
from lab.ui.compare_runs import plain_name


def menu(row: DeltaGenerator, shown: list[Contestant]) -> None:
    """Each file is made when it is asked for."""
    usd = compare_price.current(shown)
    with row.popover(
        "Export", icon=":material/download:", key="compare.export", disabled=not shown
    ):
        st.download_button(
            "Report (HTML)", lambda: html_report(shown, usd), "comparison.html", "text/html",
            key="compare.html", on_click="ignore",
            help="One file with all charts and tables, which opens without a network.",
        )  # fmt: skip
        st.download_button(
            "Figures (CSV)", lambda: figures.as_csv(shown, plain_name, usd), "comparison.csv",
            "text/csv", key="compare.csv", on_click="ignore",
        )  # fmt: skip
        st.download_button(
            "Everything (JSON)", lambda: json_report(shown, usd), "comparison.json",
            "application/json", key="compare.json", on_click="ignore",
        )  # fmt: skip
        st.caption("A picture (PNG) of a chart: the camera at its upper right corner.")


def json_report(shown: list[Contestant], usd: float) -> str:
    return json.dumps(report.as_json(shown, plain_name, usd), indent=1, ensure_ascii=False)


def html_report(shown: list[Contestant], usd: float = 0.0) -> str:
    return report.as_html(shown, plain_name, charts(shown, usd), usd)


def charts(shown: list[Contestant], usd: float) -> dict[str, Any]:
    """Figures by their titles, for a light page: the losses over steps and time, the planes."""
    by_id = {each.id: each for each in shown}
    drawn: dict[str, Any] = {}
    axes = [axis for axis in axes_of(shown, usd) if axis in ("step", "tokens", "seconds")]
    for key in [key for key in measures_of(shown) if key in ("eval/loss", "probe/rise")]:
        for by in axes:
            curves = {each.id: line for each in shown if (line := curve(each, key, by)) is not None}
            if not curves:
                continue
            widest = max(float(line.x[-1]) for line in curves.values())
            scale, _, title = compare_curves.x_scale(by, widest)
            base = compare_curves.base_loss(shown) if key == "eval/loss" else None
            name = f"{compare_curves.MEASURE_TITLES[key][0]} by {compare_curves.TITLES[by].lower()}"
            drawn[name] = compare_curves.draw(
                curves, by_id, key, title, scale, None, base, View(by)
            )
    for x, y in PLANES:
        if {x, y} <= set(axes_with_values(shown, usd)):
            title = f"{figures.BY_KEY[y].title} against {figures.BY_KEY[x].title}"
            drawn[title] = compare_plots.draw(shown, x, y, usd, dark=False)
    return drawn


if __name__ == "__main__":  # for the command line: the report of these runs, on stdout
    named = contestants([paths.run_dir(run_id) for run_id in sys.argv[1:]])
    sys.stdout.write(html_report(named))
