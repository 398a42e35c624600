"""A comparison as one HTML file that works without a network, and as JSON values."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

from lab.compare import figures, notes, scored_rows, scores_report
from lab.compare.contestants import Contestant, Names
from lab.compare.curves import axes_of, curve, measures_of
from lab.compare.equal_terms import equal_terms
from lab.compare.figures import figure_rows
from lab.compare.html_table import table, text_of
from lab.compare.settings_diff import setting_rows
from lab.compare.trade_offs import PLANES, pareto_front, points
from lab.compare.verdict import verdict
from lab.formatting import quantity

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #14272a; background: #fff; margin: 2rem auto;
  max-width: 1100px; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .35rem .6rem; border-bottom: 1px solid #d6e0e0; }
td.best { font-weight: 650; } .terms { color: #566568; } .red { color: #b3095f; }
.badge { background: #f3f6f6; border-radius: .4rem; padding: .1rem .5rem; margin-right: .4rem; }
"""


def as_json(contestants: Sequence[Contestant], names: Names, price: float = 0.0) -> dict[str, Any]:
    """Everything that Compare shows: verdict, terms, figures, settings, curves, fronts, notes."""
    terms = equal_terms(contestants, names)
    return {
        "v": 1,
        "made": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "price_usd_per_hour": price or None,
        "contestants": [
            {
                "id": each.id,
                "name": names(each),
                "runs": [{"id": run.id, "seed": run.seed} for run in each.runs],
            }
            for each in contestants
        ],
        "terms": dataclasses.asdict(terms) | {"title": terms.title},
        "verdict": dataclasses.asdict(verdict(contestants, terms, names)),
        "figures": [
            {
                "key": row.figure.key,
                "title": row.figure.title,
                "unit": row.figure.unit,
                "better": row.figure.better,
                "base": row.base,
                "values": [dataclasses.asdict(cell) for cell in row.cells],
            }
            for row in figure_rows(contestants, price)
        ],
        "settings": [
            {"key": row.key, "title": row.title, "values": row.values, "differs": row.differs}
            for row in setting_rows(contestants)
        ],
        "curves": [
            {"id": each.id, "measure": key, "by": by, "x": line.x.tolist(), "y": line.y.tolist()}
            for key in measures_of(contestants)
            for by in axes_of(contestants, price)
            for each in contestants
            if (line := curve(each, key, by, price)) is not None
        ],
        "fronts": [
            {"x": x, "y": y, "ids": [point.id for point in pareto_front(plane, x, y)]}
            for x, y in PLANES
            if len(plane := points(contestants, x, y, price)) > 1
        ],
        "scores": [scored_rows.as_json(each) for each in scored_rows.scored_sets(contestants)],
        "notes": notes.read(ids_of(contestants)),
    }


def ids_of(contestants: Sequence[Contestant]) -> list[str]:
    return [run.id for each in contestants for run in each.runs]


def as_html(
    contestants: Sequence[Contestant],
    names: Names,
    charts: Mapping[str, Any],
    price: float = 0.0,
) -> str:
    """The report as one document: `charts` are Plotly figures by title, whose library is written
    into it once. No name of a run or a setting is more than text in it."""
    terms = equal_terms(contestants, names)
    result = verdict(contestants, terms, names)
    parts = [
        f"<h1>{text_of(result.headline)}</h1>",
        f"<p>{text_of(result.detail)}</p>" if result.detail else "",
        "<p>"
        + "".join(f'<span class="badge">{text_of(b.text)}</span>' for b in result.badges)
        + "</p>",
        f"<h2>Equal terms: {text_of(terms.title)}</h2>" if len(contestants) > 1 else "",
        *(f'<p class="red">{text_of(reason)}</p>' for reason in terms.unequal),
        f'<p class="terms">{text_of(" ".join([terms.same, *terms.remarks]).strip())}</p>',
    ]
    for index, (title, chart) in enumerate(charts.items()):
        parts.append(f"<h2>{text_of(title)}</h2>")
        parts.append(
            chart.to_html(
                full_html=False, include_plotlyjs=index == 0, include_mathjax=False,
                config={"displaylogo": False}, div_id=f"chart-{index}",
            )
        )  # fmt: skip
    parts += ["<h2>Figures</h2>", _figures(contestants, names, price)]
    parts += scores_report.sections(contestants, names)
    parts += ["<h2>Settings that differ</h2>", _settings(contestants, names)]
    text = notes.read(ids_of(contestants))
    if text:
        parts += ["<h2>Notes</h2>", f"<p>{text_of(text)}</p>".replace("\n", "<br>")]
    created = time.strftime("%d %b %Y, %H:%M")
    runs = ", ".join(ids_of(contestants))
    parts.append(f'<p class="terms">Finetune Lab, {created}. Runs: {text_of(runs)}.</p>')
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:\">"
        "<title>Comparison of "
        f"{quantity(len(contestants), 'run')}</title><style>{STYLE}</style></head>\n"
        f"<body>{''.join(parts)}</body></html>\n"
    )


def _figures(contestants: Sequence[Contestant], names: Names, price: float) -> str:
    arrows = {"lower": " ↓", "higher": " ↑", "": ""}
    rows = [
        [
            (f"{row.figure.title}{arrows[row.figure.better]}", False),
            (figures.text(row.figure, row.base), False),
            *(
                (figures.text(row.figure, cell.value, cell.half), cell.is_best)
                for cell in row.cells
            ),
        ]
        for row in figure_rows(contestants, price)
    ]
    return table(["Figure", "base", *map(names, contestants)], rows)


def _settings(contestants: Sequence[Contestant], names: Names) -> str:
    rows = setting_rows(contestants)
    differing = [row for row in rows if row.differs]
    listed = table(
        ["Setting", *map(names, contestants)],
        [[(row.title, False), *((value, False) for value in row.values)] for row in differing],
    )
    same = quantity(len(rows) - len(differing), "setting")
    return f"{listed}<p class='terms'>The same for all: {same}.</p>"
