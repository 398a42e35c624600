"""What the forecast and the Memory page say of an estimate, figure by figure."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from lab import methods
from lab.forecasts import Forecast
from lab.ui import estimate_panel, memory_charts, method_estimates
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
        "weights": 4.0, "gradients": 1.0, "optimizer state": 2.0, "activations": 0.5,
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
    job: Any = SimpleNamespace(estimate=estimate(**changes), is_complete=True, problem="")
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
    job: Any = SimpleNamespace(estimate=None, is_complete=True, problem="no [model](x)")
    estimate_panel.show(job, View())
    (shown,) = [args[0] for kind, args, _ in screen.calls if kind == "markdown"]
    assert shown == ":gray[no \\[model\\]\\(x\\)]"


def test_a_rule_of_thumb_stands_beside_the_bar_with_its_error() -> None:
    rows = [row()]
    figure = memory_charts.bars(rows, {"name": "Card", "bytes": 24e9}, View())
    (points,) = [trace for trace in figure.data if trace.type == "scatter"]
    assert list(points.x) == [10.0] and list(points.customdata[0]) == ["A2", "+25%"]
    assert [shape.x0 for shape in figure.layout.shapes] == [24.0]
    assert figure.layout.annotations[0].text == "Card: 24.0 GB"
    assert figure.layout.xaxis.range[1] == pytest.approx(24 * 1.12), "the line is in the picture"


@pytest.mark.parametrize(
    ("changes", "fits", "recomputes"),
    [
        ({}, "yes", "nothing"),
        ({"fits": False}, "no", "nothing"),
        ({"fits": None}, "", "nothing"),
        ({"fits": None, "trace_error": "no"}, "not known", "nothing"),
        ({"settings": {"activation_checkpointing": "on"}}, "yes", "all layers"),
        (
            {"settings": {"activation_checkpointing": "on", "checkpointed_layers": 3}},
            "yes",
            "3 layers",
        ),
    ],
)
def test_the_table_holds_the_figures_of_the_bars(
    changes: dict[str, Any], fits: str, recomputes: str
) -> None:
    (line,) = memory_charts.table([row(**changes)])
    assert (line["fits"], line["recomputes"]) == (fits, recomputes)
    assert line["peak"] == 8.0 and line["optimizer state"] == 2.0 and line["tokens/s"] == 900.0
    assert line["result on disk, GB"] == 3.0 and line["Wh a million tokens"] == 80.0
    assert line["by"] == "traced step" and line["phase"] == "optimizer"


def test_a_rule_is_held_against_the_usual_method_of_its_kind() -> None:
    odd = next(method for method in methods.all_methods() if not method.is_standard)
    rows = [row(odd.name, peak_bytes=5e9), row("full")]
    (line,) = memory_charts.held_against(rows)
    assert line["for"] == methods.get("full").title
    assert (line["rule, GB"], line["predicted, GB"], line["error"]) == (10.0, 8.0, 0.25)


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


def test_estimates_that_were_abandoned_are_begun_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(method_estimates.MethodEstimates, "ask", lambda self: None)
    settings, device = {"model": "abandoned"}, {"gpu": "T4 16GB"}
    first = method_estimates.job_for(settings, device)
    assert method_estimates.job_for(settings, device) is first, "shared by all who look"
    first.asking.cancel()
    assert method_estimates.job_for(settings, device) is not first
