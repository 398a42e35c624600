"""Curves over a common axis, who leads where, fronts, and the settings that differ."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest

from lab import paths
from lab.atomic_files import write_json
from lab.compare.contestants import contestants, difference_to_base
from lab.compare.curves import (
    HIGHER,
    MAX_POINTS,
    Curve,
    axes_of,
    curve,
    lead_changes,
    measures_of,
    standings,
)
from lab.compare.figures import figure_rows, text
from lab.compare.settings_diff import setting_rows
from lab.compare.trade_offs import Point, axes_with_values, pareto_front, points
from lab.rank import measure
from lab.rank.measure import RankReport
from tests.compare.recorded import record
from tests.compare.test_verdict import NOISE


def line(x: list[float], y: list[float]) -> Curve:
    return Curve(np.array(x), np.array(y))


A = line([0, 2, 4], [3.6, 2.6, 2.4])
B = line([0, 1, 7], [3.6, 2.5, 2.5])


def test_values_between_evaluations_are_interpolated_and_ranked() -> None:
    first, second = standings({"a": A, "b": B}, 1.0)
    assert (first.id, first.value, first.behind) == ("b", 2.5, 0.0)
    assert (second.id, second.value) == ("a", pytest.approx(3.1))
    assert second.behind == pytest.approx(0.6)


def test_beyond_its_end_a_run_has_no_value() -> None:
    first, second = standings({"a": A, "b": B}, 5.0)
    assert first.id == "b" and (second.id, second.ended_at, second.value) == ("a", 4.0, 2.4)
    order = [each.id for each in standings({"a": A, "b": B}, 9.0, HIGHER)]
    assert order == ["b", "a"], "where more is better, the highest of those that ended comes first"


def test_the_lead_changes_where_the_curves_cross_and_not_where_one_ends() -> None:
    """A falls from 2.6 at 2 to 2.4 at 4: it passes B's 2.5 at 3. B leads from 4 on because A has
    ended, which is no change."""
    (change,) = lead_changes({"a": A, "b": B})
    assert change.leader == "a" and change.at == pytest.approx(3.0)
    flat = line([0, 4], [3.0, 3.0])
    assert [c.leader for c in lead_changes({"a": A, "b": B, "c": flat})] == ["b", "a"]
    assert lead_changes({"a": A}) == []


def test_three_crossings_within_one_interval_come_in_order() -> None:
    curves = {
        "a": line([0, 10], [0.0, 10.0]),
        "b": line([0, 10], [4.0, 5.0]),
        "c": line([0, 10], [9.0, 0.0]),
    }
    changes = [(change.leader, round(change.at, 3)) for change in lead_changes(curves)]
    assert changes == [("b", 4.444), ("c", 5.0)]
    rising = lead_changes(curves, HIGHER)
    assert [change.leader for change in rising] == ["a"]
    assert rising[0].at == pytest.approx(9 / 1.9)


def test_a_leader_is_passed_as_often_as_the_lead_changes() -> None:
    x = np.linspace(0, 4 * np.pi, 400)
    waves = {"sin": Curve(x, np.sin(x)), "flat": Curve(x, np.zeros_like(x) + 0.1)}
    changes = lead_changes(waves)
    expected = [np.arcsin(0.1), np.pi - np.arcsin(0.1)]
    expected += [2 * np.pi + at for at in expected]
    assert [change.leader for change in changes] == ["flat", "sin", "flat", "sin"]
    assert [change.at for change in changes] == pytest.approx(expected, abs=1e-3)


def test_a_curve_begins_with_the_base_and_has_the_interval_of_its_rows() -> None:
    (only,) = contestants([record("aaaa", losses=(3.0, 2.41), noise=NOISE)])
    drawn = curve(only, "eval/loss", "seconds")
    difference = difference_to_base(only)
    assert drawn is not None and drawn.half is not None and difference is not None
    assert drawn.x.tolist() == [0.0, 50.0, 100.0] and drawn.y[0] == 3.59
    assert drawn.half[0] == 0.0 and drawn.half[-1] == pytest.approx(difference.half)


def test_seeds_are_averaged_with_the_interval_between_them() -> None:
    runs = [record(f"a{s}aa", losses=(3.0, 2.4 + 0.1 * s), seed=s) for s in range(3)]
    (group,) = contestants(runs)
    drawn = curve(group, "eval/loss", "step")
    assert drawn is not None and drawn.half is not None
    assert drawn.y.tolist() == pytest.approx([3.59, 3.0, 2.5])
    assert drawn.half.tolist() == pytest.approx([0, 0, 4.30265273 * 0.1 / np.sqrt(3)], abs=1e-6)


def test_energy_is_what_the_card_drew_while_it_trained() -> None:
    (only,) = contestants([record("aaaa", losses=(3.0, 2.41), seconds=100, power=72.0)])
    assert only.value("energy_wh") == pytest.approx(2.0)
    drawn = curve(only, "eval/loss", "energy")
    assert drawn is not None and drawn.x.tolist() == pytest.approx([0.0, 1.0, 2.0])
    cost = curve(only, "eval/loss", "cost", price=3.6)
    assert cost is not None and cost.x.tolist() == pytest.approx([0.0, 0.05, 0.1])
    assert axes_of([only]) == ["step", "tokens", "seconds", "flops", "energy"]
    dark = contestants([record("bbbb")])
    assert axes_of([only, *dark], price=1.0) == ["step", "tokens", "seconds", "flops", "cost"]


def test_long_curves_are_thinned() -> None:
    (only,) = contestants([record("aaaa", losses=tuple(np.linspace(3.5, 2.0, 2000)))])
    for key in ("eval/loss", "train/loss"):
        drawn = curve(only, key, "step")
        assert drawn is not None and len(drawn.x) == MAX_POINTS and drawn.x[-1] == 2000
    assert "train/loss" in measures_of([only]) and "probe/rise" not in measures_of([only])


def test_the_front_has_what_nothing_beats() -> None:
    plane = [
        Point("a", 1, 5),
        Point("b", 2, 3),
        Point("c", 3, 3),
        Point("d", 4, 1),
        Point("e", 4, 4),
    ]
    assert [point.id for point in pareto_front(plane, "peak_bytes", "loss")] == ["a", "b", "d"]
    by_speed = pareto_front(plane, "tokens_per_s", "loss")
    assert [point.id for point in by_speed] == ["d"], "faster is better"


def test_ranks_are_drawn_listed_and_plotted_where_runs_have_them() -> None:
    """Of two LoRA runs the effective ranks; that of the result once it was measured, of full
    fine-tuning as well. Neither direction is better, so nothing is marked and nothing beats."""
    runs = [
        record("aaaa", "A", rank=7.25),
        record("bbbb", "B", rank=3.5, learning_rate=0.5),
        record("cccc", "C", "full"),
    ]
    those = contestants(runs)
    assert {"rank/effective", "rank/stable"} <= set(measures_of(those))
    assert "rank/effective" not in measures_of(those[2:]), "full fine-tuning has no factors"
    drawn = curve(those[0], "rank/effective", "step")
    assert drawn is not None and drawn.y.tolist() == [7.25, 7.25] and drawn.x.tolist() == [1, 2]
    for run, needed in ((runs[0], 6), (runs[2], 40)):
        paths.make_folder(measure.file_of(run).parent)
        write_json(measure.file_of(run), asdict(RankReport(run=run.id, needed=needed, rank=64)))
    rows = {row.figure.key: row for row in figure_rows(contestants(runs))}
    shown = {
        key: [text(rows[key].figure, cell.value, cell.half) for cell in rows[key].cells]
        for key in ("effective_rank", "stable_rank", "needed_rank")
    }
    assert shown == {
        "effective_rank": ["7.2", "3.5", "–"],
        "stable_rank": ["3.6", "1.8", "–"],
        "needed_rank": ["6", "–", "40"],
    }
    assert not any(cell.is_best for key in shown for cell in rows[key].cells)
    assert {"effective_rank", "needed_rank"} <= set(axes_with_values(contestants(runs)))
    assert "effective_rank" not in axes_with_values(contestants(runs[::2])), "One has it."
    plane = points(contestants(runs), "needed_rank", "loss")
    assert [point.x for point in plane] == [6, 40]
    assert pareto_front(plane, "needed_rank", "loss") == []


def test_the_planes_are_of_what_two_have_measured() -> None:
    those = contestants([record("aaaa", rise=0.1), record("bbbb", "B", "full", rise=0.3)])
    assert [(point.x, point.y) for point in points(those, "forgetting", "loss")] == [
        (0.1, pytest.approx(2.41)), (0.3, pytest.approx(2.41)),
    ]  # fmt: skip
    assert "energy_wh" not in axes_with_values(those) and "loss" in axes_with_values(those)


def test_settings_stand_under_their_titles_and_say_whether_they_differ() -> None:
    those = contestants(
        [
            record("aaaa", "A", {"name": "lora", "rank": 8}, learning_rate=2e-4),
            record("bbbb", "B", "full", learning_rate=2e-5),
        ]
    )
    rows = {row.key: row for row in setting_rows(those)}
    assert rows["method.name"].values == ("LoRA", "Full fine-tuning")
    assert rows["method.rank"].title == "LoRA rank" and rows["method.rank"].values == ("8", "–")
    assert rows["train.learning_rate"].values == ("2e-4", "2e-5")
    assert rows["train.learning_rate"].title == "Learning rate"
    assert not rows["train.seed"].differs and "name" not in rows
    seeds = contestants([record(f"a{seed}ab", seed=seed) for seed in (1, 2)])
    (row,) = [each for each in setting_rows(seeds) if each.key == "train.seed"]
    assert row.values == ("1, 2",), "those of all of its runs"
