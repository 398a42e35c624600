"""The time machine of Compare: which checkpoint a click on the curves leads to."""

from __future__ import annotations

from typing import Any

import pytest

from lab.compare.contestants import contestants
from lab.compare.run_figures import run_figures
from lab.paths import RunDir
from lab.ui import compare_curves, compare_point
from lab.ui.compare_export import charts
from lab.ui.compare_point import NearestCheckpoint
from tests.compare.recorded import record
from tests.ui.conftest import Page


def with_checkpoints(run: RunDir, *steps: int) -> RunDir:
    for step in steps:
        (run.checkpoints / f"step-{step}").mkdir(parents=True)
    return run


@pytest.mark.parametrize(
    ("clicked", "expected", "says"),
    [
        (2, NearestCheckpoint(2, 2, False), "step 2"),
        (3, NearestCheckpoint(3, 4, False), "step 4, the checkpoint nearest to 3"),
        (5, NearestCheckpoint(5, 6, True), "the result, step 6, the checkpoint nearest to 5"),
        (6, NearestCheckpoint(6, 6, True), "the result, step 6"),
    ],
)
def test_the_nearest_checkpoint_or_the_result(
    clicked: int, expected: NearestCheckpoint, says: str
) -> None:
    run = with_checkpoints(record("aaaa", losses=(3, 3, 3, 3, 3, 3)), 2, 4)
    there = compare_point.nearest(run_figures(run), clicked)
    assert there == expected and there.in_words() == says


def test_a_place_on_any_axis_is_a_step() -> None:
    """Four steps in 100 s, 1,000 tokens."""
    run = run_figures(record("aaaa", losses=(3, 3, 3, 3), seconds=100, tokens=1000))
    at = {"step": 2.2, "seconds": 52.0, "tokens": 510.0, "flops": 2.1e9, "cost": 0.029}
    assert {by: compare_point.step_at(run, by, x, 2.0) for by, x in at.items()} == dict.fromkeys(
        at, 2
    )
    assert compare_point.step_at(run, "seconds", 999.0, 0.0) == 4, "beyond its end: its last"
    assert compare_point.step_at(run, "seconds", 1.0, 0.0) == 0


def test_only_a_click_tells_a_place() -> None:
    def event(*points: dict[str, Any]) -> dict[str, Any]:
        return {"selection": {"points": list(points)}}

    assert compare_point.clicked_at(None) is None and compare_point.clicked_at(event()) is None
    assert compare_point.clicked_at(event({"x": 2.5, "y": 1.0}, {"x": 3})) == 2.5
    assert compare_point.clicked_at(event({"x": "<b>"})) is None


def test_curves_can_be_clicked_on_the_page_and_look_as_in_the_report() -> None:
    runs = contestants([record("aaaa", "A"), record("bbbb", "B", "full")])
    chart = charts(runs, 0.0)["Evaluation loss by steps"]
    lines = [trace for trace in chart.data if trace.mode == "lines"]
    compare_curves._pass_clicks_on(chart)
    assert [trace.mode for trace in lines].count("lines+markers") == 2
    assert all(t.marker.opacity == 0 for t in lines if t.mode == "lines+markers")
    ends = [trace for trace in chart.data if trace.mode == "markers"]
    assert ends and all(t.unselected.marker.opacity == 1 for t in ends), "a click fades nothing"


def test_a_click_on_an_axis_of_minutes_is_a_time_in_seconds(
    open_page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = with_checkpoints(record("aaaa", "wren lora", losses=(3, 2.8, 2.6), seconds=360), 1)
    monkeypatch.setattr(compare_point, "clicked_at", lambda event: 2.0)
    at = open_page("compare", runs=run.id, by="seconds")
    labels = [link.proto.label for link in at.get("page_link")]
    assert "wren lora: step 1" in labels, "two of six minutes are one of three steps"


def test_each_run_has_a_link_and_all_go_side_by_side(
    open_page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = with_checkpoints(record("aaaa", "wren lora", losses=(3, 2.8, 2.6, 2.41)), 2)
    second = record("bbbb", "wren full", "full", losses=(3, 2.9, 2.7, 2.5))
    gone = record("cccc", "wren ia3", "ia3", losses=(3, 2.9))
    gone.artifact.rename(gone.path / "gone")
    monkeypatch.setattr(compare_point, "clicked_at", lambda event: 1.0)
    at = open_page("compare", runs=",".join(run.id for run in (first, second, gone)))
    links = {link.proto.label: link.proto.query_string for link in at.get("page_link")}
    assert "wren lora: step 2, the checkpoint nearest to 1" in links, links
    models = links["wren lora: step 2, the checkpoint nearest to 1"]
    assert f"run%3A{first.id}%402" in models and models.startswith("models=base%3A")
    result = links["wren full: the result, step 4, the checkpoint nearest to 1"]
    assert result.endswith(f"run%3A{second.id}"), "the result has no step in its name"
    together = links["All of them side by side"]
    assert together.count("run%3A") == 2 and together.count("base%3A") == 1
    assert any("wren ia3: no checkpoint left" in text.value for text in at.caption)
