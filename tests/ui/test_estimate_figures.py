"""What the forecast and the Memory page say of an estimate, figure by figure."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from lab import methods
from lab.errors import LabError
from lab.forecasts import Forecast
from lab.ui import estimate_panel, memory_charts, memory_view, method_estimates, waiting
from lab.ui.charts import View
from tests.ui.screen import Screen

AT_PEAK = {
    "weights": 4e9, "gradients": 1e9, "optimizer": 2e9, "activations": 5e8, "loss": 3e8,
    "workspace": 2e8,
}  # fmt: skip
PACE = {
    "seconds": 100.0, "evaluating_s": 20.0, "steps": 1200, "tokens": 5000, "energy_wh": 12.0,
    "is_measured": True,
}  # fmt: skip


def estimate(**changes: Any) -> Forecast:
    stored = {
        "peak_bytes": 8e9, "at_peak": AT_PEAK, "peak_phase": "optimizer", "source": "shadow",
        "device_bytes": 24e9, "fits": True, "has_margin": False, "tokens_per_s": 900.0,
        "wh_per_million_tokens": 80.0, "disk": {"artifact": 3e9, "total": 9e9},
        "rules": {"A2": 10e9}, "pace": PACE, "settings": {}, **changes,
    }  # fmt: skip
    damaged: list[str] = []
    forecast = Forecast.from_json(stored, damaged)
    assert forecast is not None and damaged == []
    return forecast


def row(name: str = "full", **changes: Any) -> method_estimates.MethodRow:
    return method_estimates.MethodRow(name, methods.get(name).title, estimate(**changes))


def time_of(forecast: Forecast) -> None:
    assert forecast.runtime is not None
    estimate_panel._time(forecast.runtime, forecast.disk)


def test_the_time_counts_evaluations_too(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen()
    monkeypatch.setattr(estimate_panel, "st", screen)
    time_of(estimate())
    figures = [args for kind, args, _ in screen.calls if kind == "metric"]
    assert figures == [("Run time", "2 min 00 s"), ("Tokens", "5,000"), ("Disk", "9.00 GB")]
    assert screen.texts("caption") == [
        "1,200 steps, training 1 min 40 s · 12.0 Wh · from finished runs on this machine"
    ]
    time_of(estimate(pace=PACE | {"is_measured": False}))
    assert "rough: no finished run on this machine" in screen.texts("caption")[1]


def test_the_bar_is_the_parts_and_the_line_what_is_free() -> None:
    figure = estimate_panel.bar(estimate(), View())
    assert {trace.name: trace.x[0] for trace in figure.data} == {
        "weights": 4.0, "gradients": 1.0, "optimizer states": 2.0, "activations": 0.5,
        "logits and loss": 0.3, "workspace": 0.2,
    }  # fmt: skip
    assert not figure.layout.shapes, "so far away that the bar would be a dot"
    near = estimate_panel.bar(estimate(device_bytes=9e9), View())
    assert [shape.x0 for shape in near.layout.shapes] == [9.0]
    assert [note.text for note in near.layout.annotations] == ["free 9.0 GB"]


@pytest.mark.parametrize(
    ("changes", "warning"),
    [
        ({}, None),
        ({"fits": False}, "This run will not fit."),
        ({"fits": None, "trace_error": "no"}, "Whether it fits is not known"),
    ],
)
def test_what_does_not_fit_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], warning: str | None
) -> None:
    screen = Screen()
    monkeypatch.setattr(estimate_panel, "st", screen)
    job: Any = SimpleNamespace(estimate=estimate(**changes), is_complete=True, error=None)
    estimate_panel.show(job, View())
    sentence = screen.texts("markdown")[0]
    assert "8.0 of 24.0 GB" in sentence and "peak in the optimizer phase, traced step" in sentence
    legend = screen.texts("markdown")[1].replace("\u00a0", " ")
    assert legend.startswith(":blue[●] weights 4.00") and "gray[●] workspace 0.20" in legend
    warned = screen.texts("warning")
    assert warned == [] if warning is None else warned[0].startswith(warning)


def test_a_problem_is_shown_as_text(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen()
    monkeypatch.setattr(estimate_panel, "st", screen)
    monkeypatch.setattr(waiting, "st", screen)
    error = LabError("no [model](x)")
    job: Any = SimpleNamespace(estimate=None, is_complete=True, error=error)
    estimate_panel.show(job, View())
    (shown,) = [args[0] for kind, args, _ in screen.calls if kind == "error"]
    assert shown == "no \\[model\\]\\(x\\)"
    assert [args[0] for kind, args, _ in screen.calls if kind == "button"] == ["Try again"]


def test_a_quick_estimate_says_why_no_traced_one_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen()
    for module in (estimate_panel, waiting):
        monkeypatch.setattr(module, "st", screen)
    outline = estimate(source="outline")
    error = TypeError("no rows")
    job: Any = SimpleNamespace(estimate=outline, is_complete=True, error=error)
    estimate_panel.show(job, View())
    assert "quick estimate]" in screen.texts("markdown")[0], "Nothing is traced any more."
    assert screen.texts("error") == ["Unexpected error: TypeError: no rows"]


def test_a_rule_of_thumb_stands_beside_the_bar_with_its_error() -> None:
    rows = [row()]
    bars = memory_charts.Bars(rows, "Card", 9 * 10**9)
    figure = memory_charts.chart([bars], View(), rules=True)
    (points,) = [trace for trace in figure.data if trace.name == "rules of thumb"]
    assert list(points.x) == [10.0] and list(points.customdata[0]) == ["A2", "+25 %", 10.0]
    assert [shape.x0 for shape in figure.layout.shapes] == [9.0]
    assert figure.layout.annotations[0].text == "Card: 9.0 GB"
    plain = memory_charts.chart([bars], View())
    assert not [trace for trace in plain.data if trace.name == "rules of thumb"], "on request"


def test_the_bars_make_the_scale_and_the_figures_say_what_fits() -> None:
    rows = [
        row("full"),
        row("lora", peak_bytes=2e9, rules={"A4": 99e9}),
        row("qlora", peak_bytes=12e9, fits=False),
    ]
    far = memory_charts.Bars(rows, "Card", 80 * 10**9)
    figure = memory_charts.chart([far], View(), rules=True)
    assert not figure.layout.shapes, "a line far away would make dots of the bars"
    assert figure.layout.xaxis.range[1] == pytest.approx(12 * memory_charts.RULES_ROOM * 1.05)
    (points,) = [trace for trace in figure.data if trace.name == "rules of thumb"]
    beyond = dict(zip(points.marker.symbol, points.x, strict=True))["triangle-right-open"]
    assert beyond == pytest.approx(12 * memory_charts.RULES_ROOM), "on the edge, with its figure"
    assert list(figure.layout.yaxis.ticktext) == ["LoRA", "Full fine-tuning", "QLoRA"], "by size"
    assert figure.layout.yaxis.range[0] > figure.layout.yaxis.range[1], "the smallest on top"
    ends = [note for note in figure.layout.annotations if note.xanchor == "left"]
    marks = {note.text: note.font.color for note in ends}
    assert {note.bgcolor for note in ends} == {View().page}, "no line strikes a figure through"
    assert marks == {
        "8.0 GB ✓ fits": View().colours[3],
        "2.0 GB ✓ fits": View().colours[3],
        "12.0 GB ✕ too large": View().colours[4],
    }


def test_two_settings_stand_beside_each_other_on_one_scale() -> None:
    first = memory_charts.Bars([row("full"), row("lora", peak_bytes=2e9)], "Card", 9 * 10**9, "A")
    second = memory_charts.Bars([row("full", peak_bytes=4e9)], "Card", 9 * 10**9, "B")
    figure = memory_charts.chart([first, second], View())
    stacks = [trace for trace in figure.data if trace.type == "bar" and trace.name == "weights"]
    assert [list(trace.y) for trace in stacks] == [[0.79, -0.21], [1.21]]
    assert [trace.showlegend for trace in stacks] == [True, False], "one legend for both"
    assert len(figure.layout.shapes) == 1, "one line for one device"
    assert memory_charts.differences(first, second) == [
        {"method": "LoRA", "A (GB)": 2.0, "B (GB)": None, "B less A (GB)": None},
        {"method": "Full fine-tuning", "A (GB)": 8.0, "B (GB)": 4.0, "B less A (GB)": -4.0},
    ]
    table = memory_charts.table([first, second])
    assert [(line["setting"], line["method"]) for line in table] == [
        ("A", "LoRA"), ("A", "Full fine-tuning"), ("B", "Full fine-tuning"),
    ]  # fmt: skip


def test_one_sentence_says_what_the_bars_say() -> None:
    rows = [row("full", peak_bytes=60e9, fits=False), row("lora", peak_bytes=21e9)]
    bars = memory_charts.Bars(rows, "Card", 24 * 10**9)
    assert memory_view.headline([bars]) == [
        "**LoRA needs 2.9 times less memory than full fine-tuning here**: 21.00 GB instead of "
        "60.00 GB. 1 of 2 methods fit into Card (24.00 GB)."
    ]
    first, second = (
        memory_charts.Bars([row("lora", peak_bytes=peak)], "Card", None, letter)
        for letter, peak in (("A", 10e9), ("B", 15e9))
    )
    sentence, _ = memory_view.headline([first, second])
    assert sentence.startswith("**Setting B needs 1.5 times more memory than setting A for LoRA**")
    same, _ = memory_view.headline([first, first])
    assert "about as much memory" in same
    lone = memory_charts.Bars([row("vera")], "Card", 24 * 10**9)
    assert memory_view.headline([lone]) == ["1 of 1 method fits into Card (24.00 GB)."]


@pytest.mark.parametrize(
    ("changes", "fits", "checkpointed"),
    [
        ({}, "✓ yes", "none"),
        ({"fits": False}, "✕ no", "none"),
        ({"fits": None}, "–", "none"),
        ({"fits": None, "trace_error": "no"}, "not known", "none"),
        ({"settings": {"activation_checkpointing": "on"}}, "✓ yes", "all"),
        (
            {"settings": {"activation_checkpointing": "on", "checkpointed_layers": 3}},
            "✓ yes",
            "3",
        ),
    ],
)
def test_the_table_holds_the_figures_of_the_bars(
    changes: dict[str, Any], fits: str, checkpointed: str
) -> None:
    (line,) = memory_charts.table([memory_charts.Bars([row(**changes)], "Card")])
    assert (line["fits"], line["checkpointed layers"]) == (fits, checkpointed)
    assert line["peak memory (GB)"] == 8.0 and line["optimizer states (GB)"] == 2.0
    assert line["trained model (GB)"] == 3.0 and line["Wh per million tokens"] == 80.0
    assert line["tokens/s"] == 900.0
    assert line["estimate"] == "traced" and line["phase"] == "optimizer"


def test_a_rule_is_held_against_the_usual_method_of_its_kind() -> None:
    odd = next(method for method in methods.all_methods() if not method.is_standard)
    rows = [row(odd.name, peak_bytes=5e9), row("full")]
    (line,) = memory_charts.held_against(rows)
    assert line["method"] == methods.get("full").title
    assert (line["rule (GB)"], line["estimate (GB)"], line["error"]) == (10.0, 8.0, 0.25)


def test_every_method_is_estimated_under_the_settings_of_the_page() -> None:
    settings = {
        "model": "config:X", "rank": 8, "rows": 16, "length": 2048, "loss": "plain",
        "checkpointing": "on",
    }  # fmt: skip
    spec = method_estimates.spec_of(settings, methods.get("lora"))
    assert spec["method"] == {"name": "lora", "rank": 8, "alpha": 16.0}
    assert spec["data"] == {"max_length": 2048}
    assert spec["train"] == {
        "batch_size": 16, "activation_checkpointing": "on", "loss_implementation": "plain",
    }  # fmt: skip
    assert method_estimates.spec_of(settings, methods.get("full"))["method"] == {"name": "full"}
    for name, own in (("vera", "256"), ("loha", "8"), ("lokr", "8"), ("adalora", "12")):
        method = methods.get(name)
        assert method_estimates.spec_of(settings, method)["method"] == {"name": name}
        assert f"{method.title} {own}" in method_estimates.own_ranks(), "The page says so."
    assert method_estimates.spec_of(settings, methods.get("qlora"))["method"]["rank"] == 8


@pytest.mark.usefixtures("forecasts")
def test_estimates_that_were_abandoned_are_begun_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(method_estimates.MethodEstimates, "ask", lambda self: None)
    settings, device = {"model": "abandoned"}, {"gpu": "T4 16GB"}
    first = method_estimates.job_for(settings, device)
    assert method_estimates.job_for(settings, device) is first, "shared by all who look"
    first.asking.cancel()
    assert method_estimates.job_for(settings, device) is not first
