"""A click on a checkpoint of the curve, and what can be done with it."""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go
import pytest

from lab.evals import checkpoint_loss
from lab.evals.checkpoint_loss import CheckpointLoss
from lab.paths import RunDir
from lab.runs.metric_series import series_of
from lab.ui import charts, checkpoint_panel, links
from lab.ui.charts import View
from tests.ui.conftest import Page, words
from tests.ui.screen import Screen


def event(*points: dict[str, Any]) -> dict[str, Any]:
    return {"selection": {"points": list(points)}}


def test_only_a_click_on_a_checkpoint_names_a_step() -> None:
    assert checkpoint_panel.clicked(event({"x": 3, "y": 2.0})) is None
    assert checkpoint_panel.clicked(event()) is None and checkpoint_panel.clicked(None) is None
    assert checkpoint_panel.clicked(event({"x": 3}, {"customdata": 8})) == 8
    assert checkpoint_panel.clicked(event({"customdata": [12]})) == 12
    assert checkpoint_panel.clicked(event({"customdata": "<b>"})) is None


def test_each_checkpoint_is_a_square_on_the_curve(trained: list[RunDir]) -> None:
    run = trained[1]
    for by, view in (("step", View()), ("tokens", View(by="tokens", log=True))):
        series = series_of(run)
        figure = charts.loss(series, view)
        (squares,) = [trace for trace in figure.data if trace.name == "checkpoint"]
        steps = list(squares.customdata)
        assert steps and set(steps) <= {4, 8, 12}
        held_out = series.evaluation
        at = [list(held_out.get("step")).index(step) for step in steps]
        assert list(squares.x) == [held_out.get(by)[index] for index in at]
        assert list(squares.y) == [held_out.get("eval/loss")[index] for index in at]
        curves = {trace.name: trace for trace in figure.data}
        on_curve = dict(zip(curves["evaluation"].x, curves["evaluation"].customdata, strict=True))
        assert on_curve == dict.fromkeys(on_curve) | dict(zip(squares.x, steps, strict=True)), (
            "a browser tells a click on a square as one on the curve that is the highest there"
        )
        training = dict(zip(curves["training"].x, curves["training"].customdata, strict=True))
        assert {x: step for x, step in training.items() if step} == dict(
            zip(squares.x, steps, strict=True)
        )
        assert curves["training"].mode == "lines+markers", "without points there is no click"
        assert curves["training"].marker.opacity == 0


def test_a_curve_that_was_thinned_carries_the_step_at_its_nearest_point() -> None:
    figure = go.Figure(
        [
            go.Scatter(name="training", mode="lines", x=[1, 5, 9], y=[3, 2, 1]),
            go.Scatter(name="evaluation, overlaid", mode="lines+markers", x=[2, 8], y=[3, 2]),
            go.Scatter(name="raw", mode="lines", x=[1, 5, 9], y=[3, 2, 1], hoverinfo="skip"),
        ]
    )
    charts._pass_clicks_on({4.0: 400, 5.0: 500, 8.0: 800}, figure)
    training, overlaid, raw = figure.data
    assert list(training.customdata) == [None, 500, 800], "its own step before a neighbour's"
    assert list(overlaid.customdata) == [400, 800] and overlaid.marker.opacity is None
    assert raw.customdata is None and raw.mode == "lines"


def test_a_checkpoint_between_evaluations_is_on_the_training_curve(trained: list[RunDir]) -> None:
    run = trained[1]
    (run.checkpoints / "step-7").mkdir()
    (run.checkpoints / "step-99").mkdir()  # of no step that is known
    figure = charts.loss(series_of(run), View())
    (squares,) = [trace for trace in figure.data if trace.name == "checkpoint"]
    index = list(squares.customdata).index(7)
    train = series_of(run).train
    row = list(train.get("step")).index(7)
    assert (squares.x[index], squares.y[index]) == (7, train.get("train/loss")[row])
    assert 99 not in squares.customdata
    smoothed = {
        trace.name: trace for trace in charts.loss(series_of(run), View(smoothing=0.9)).data
    }
    square, curve = smoothed["checkpoint"], smoothed["training"]
    assert square.y[index] == curve.y[list(curve.x).index(7)], "on the line that is drawn in full"
    (curve,) = [trace for trace in figure.data if trace.name == "training"]
    assert curve.customdata[list(curve.x).index(7)] == 7
    assert curve.mode == "lines+markers" and curve.marker.opacity == 0, (
        "a curve without points cannot be clicked"
    )


@pytest.mark.parametrize(
    ("record", "says", "offers"),
    [
        (CheckpointLoss(), "", True),
        (CheckpointLoss("measuring", 1.0), "measuring", False),
        (CheckpointLoss("failed", message="No *rows*."), "No *rows*.", True),
        (CheckpointLoss("done", loss=2.3456), "", False),
    ],
)
def test_a_checkpoint_is_chatted_with_and_measured(
    trained: list[RunDir],
    monkeypatch: pytest.MonkeyPatch,
    record: CheckpointLoss,
    says: str,
    offers: bool,
) -> None:
    run, screen = trained[1], Screen()
    for module in (checkpoint_panel, links):
        monkeypatch.setattr(module, "st", screen)
    (run.checkpoints / "step-7").mkdir()
    monkeypatch.setattr(checkpoint_loss, "measured", lambda run, step: record)
    checkpoint_panel.show(run, 7)
    (link,) = screen.named("page_link")
    assert link["query_params"]["models"].endswith(f",run:{run.id}@7")
    assert link["query_params"]["models"].startswith("base:/") and link["label"].endswith("step 7")
    assert any(says in text for text in screen.texts("caption")) or not says
    assert [button["key"] for button in screen.named("button")] == (
        [f"measure.clicked.{run.id}.7"] if offers else []
    )
    assert ("evaluation loss 2.346" in screen.texts("markdown")[0]) == (record.state == "done")


def test_what_the_run_has_measured_itself_is_not_measured_again(
    trained: list[RunDir], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, screen = trained[1], Screen()
    for module in (checkpoint_panel, links):
        monkeypatch.setattr(module, "st", screen)
    held_out = series_of(run).evaluation
    losses = dict(zip(held_out.get("step"), held_out.get("eval/loss"), strict=True))
    checkpoint_panel.show(run, 8)
    assert f"evaluation loss {losses[8]:.3f}" in screen.texts("markdown")[0], "that of its step"
    assert screen.named("button") == [] and len(set(losses.values())) > 1
    checkpoint_panel.show(run, 5)
    assert screen.texts("caption")[-1] == "The checkpoint of step 5 was deleted."


def test_monitor_offers_both(open_page: Page, trained: list[RunDir]) -> None:
    run = trained[1]
    at = open_page("monitor", run=run.id)
    assert "Squares are checkpoints" in words(at)
    at.session_state["monitor.tab"] = "Checkpoints"
    at.run()
    assert not at.exception
    assert any("Chat with step" in link.proto.label for link in at.get("page_link"))
