"""Runs side by side: each figure from its own record, and what is not equal is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lab.atomic_files import write_json
from lab.compare.comparison import compare, figures_json
from lab.compare.run_figures import run_figures
from lab.paths import RunDir
from lab.runs import index

Lines = list[dict[str, Any]]


@pytest.fixture
def recorded(lab_home: Path) -> Any:
    """`recorded("aaaa", train, evals, events)`: a run that wrote these records and has ended."""

    def make(name: str, train: Lines, evals: Lines, events: Lines = [], **spec: Any) -> RunDir:  # noqa: B006
        run = RunDir(lab_home / "runs" / f"20261122-101530-lora-{name}")
        run.artifact.mkdir(parents=True)
        write_json(
            run.spec, {"model": "m", "method": {"name": "lora"}, "train": {"seed": 7}} | spec
        )
        write_json(run.result, {"state": "done"})
        records = [{"kind": "train", "attempt": 1, **row} for row in train]
        records += [{"kind": "eval", "attempt": 1, **record} for record in evals]
        run.metrics.write_text("".join(json.dumps(record) + "\n" for record in records))
        run.events.write_text("".join(json.dumps(event) + "\n" for event in events))
        return run

    return make


def steps(count: int, tokens: int = 100, seconds: float = 2.0) -> Lines:
    peaks = [30, 50, 40]
    return [
        {
            "step": step, "tokens": tokens * step, "loss_tokens": 40 * step,
            "seconds": seconds * step, "flops": 1e9 * step, "train/loss": 5.0 - step / 10,
            "memory/peak_bytes": peaks[step % 3],
        }
        for step in range(1, count + 1)
    ]  # fmt: skip


BASE = {"of": "base", "step": 0, "eval/loss": 6.0}


def evaluated(*at: int, tokens: int = 100) -> Lines:
    return [
        {"step": step, "tokens": tokens * step, "seconds": 2.0 * step, "flops": 1e9 * step,
         "eval/loss": 5.0 - step / 100}
        for step in at
    ]  # fmt: skip


def test_every_figure_comes_from_its_own_record(recorded: Any) -> None:
    events = [
        {"kind": "model", "trainable": 10, "parameters": 1000},
        {"kind": "data", "train_hash": "t", "held_out_hash": "h"},
    ]
    run = recorded("aaaa", steps(12), [BASE, *evaluated(4, 8, 12)], events)
    (run.artifact / "adapter.safetensors").write_bytes(b"x" * 77)
    (run.checkpoints / "step-4").mkdir(parents=True)
    (run.checkpoints / "step-4" / "weights").write_bytes(b"x" * 5000)
    figures = figures_json(run_figures(run))
    expected = {
        "steps": 12, "tokens": 1200, "loss_tokens": 480, "seconds": 24.0, "flops": 12e9,
        "tokens_per_s": 50.0, "peak_bytes": 50, "trainable": 10, "parameters": 1000,
        "artifact_bytes": 77, "seed": 7, "method": "lora", "model": "m", "state": "done",
        "data_hash": "t", "held_out_hash": "h",
        "train_loss": {"first": 4.9, "last": 3.8},
        "eval_loss": {"base": 6.0, "final": 4.88},
    }  # fmt: skip
    assert {key: figures[key] for key in expected} == expected


def test_a_base_that_is_measured_last_is_still_the_base(recorded: Any) -> None:
    run = recorded("aaaa", steps(4), [*evaluated(2, 4), BASE | {"step": 5}])
    figures = run_figures(run)
    assert (figures.base_loss, figures.loss) == (6.0, 4.96)


def test_a_model_that_grew_trains_what_it_had_grown_to(recorded: Any) -> None:
    events = [
        {"kind": "model", "trainable": 10, "parameters": 1000},
        {"kind": "unfrozen", "trainable": 20},
        {"kind": "unfrozen", "trainable": 35},
    ]
    assert run_figures(recorded("aaaa", steps(2), [], events)).trainable == 35


def test_a_run_is_called_by_its_new_name_at_once(recorded: Any) -> None:
    run = recorded("aaaa", steps(2), [BASE])
    index.rename(run, "old")
    assert run_figures(run).entry.name == "old"
    index.rename(run, "new")
    assert run_figures(run).entry.name == "new"


def test_a_run_that_wrote_nothing_has_no_figures(recorded: Any) -> None:
    empty = recorded("aaaa", [], [])
    figures = figures_json(run_figures(empty))
    counters = ("steps", "tokens", "loss_tokens", "seconds", "flops")
    assert [figures[key] for key in counters] == [0] * 5 and figures["tokens_per_s"] is None
    assert figures["peak_bytes"] is None and figures["eval_loss"] == {"base": None, "final": None}
    other = recorded("bbbb", steps(3), [BASE, *evaluated(3)])
    both = compare([empty, other])
    assert both.common == 0 and both.runs[1].common_loss is None


@pytest.mark.parametrize(
    ("by", "common", "short", "long"),
    [("step", 8, 4.92, 4.92), ("tokens", 800, 4.92, 4.96), ("seconds", 16.0, 4.92, 4.92),
     ("flops", 8e9, 4.92, 4.92)],
)  # fmt: skip
def test_the_longer_run_is_measured_where_the_shorter_one_ended(
    recorded: Any, by: str, common: float, short: float, long: float
) -> None:
    """The second run has twice the tokens a step, so at 800 tokens it was at step 4."""
    first = recorded("aaaa", steps(8), [BASE, *evaluated(2, 4, 8)])
    second = recorded("bbbb", steps(20, tokens=200), [BASE, *evaluated(4, 8, 20, tokens=200)])
    for pair in ([first, second], [second, first]):
        answer = compare(pair, by).to_json()
        assert (answer["by"], answer["at"]) == (by, common)
        reached = {run["id"][-4:]: run["at"] for run in answer["runs"]}
        assert reached["aaaa"] == {"value": common, "eval_loss": pytest.approx(short)}
        assert reached["bbbb"] == {"value": common, "eval_loss": pytest.approx(long)}


def test_the_base_is_no_evaluation_of_the_run(recorded: Any) -> None:
    first = recorded("aaaa", steps(2), [BASE, *evaluated(2)])
    second = recorded("bbbb", steps(9), [BASE, *evaluated(9)])
    assert compare([first, second]).runs[1].common_loss is None, (
        "At step 2 it had not been evaluated yet."
    )


def test_other_held_out_rows_are_told_of_real_runs(recorded: Any) -> None:
    same = {"kind": "data", "train_hash": "t"}
    runs = [
        recorded(name, steps(3), [BASE], [same | {"held_out_hash": rows}])
        for name, rows in (("aaaa", "these"), ("bbbb", "those"))
    ]
    assert compare(runs).terms.unequal == ("They are measured on different held-out examples.",)
