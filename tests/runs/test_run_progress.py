"""One bar for a whole run: what has ended counts as it was, the rest as far as anybody knows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lab import paths
from lab.atomic_files import write_json
from lab.paths import RunDir
from lab.runs.run_progress import run_progress

START = 1_000_000.0


@pytest.fixture
def run(lab_home: Path) -> RunDir:
    run_dir = RunDir(paths.runs() / "20260101-120000-lora-aaaa")
    paths.make_folder(run_dir.commands)
    write_json(run_dir.spec, {"data": {"eval_fraction": 0.2}, "train": {"sample_steps": None}})
    write_json(run_dir.estimate, {"pace": {"seconds": 100.0, "evaluating_s": 20.0}})
    return run_dir


def phases(run: RunDir, *moments: tuple[float, str], attempt: int = 1) -> None:
    with run.events.open("a") as file:
        for seconds, phase in moments:
            event = {"kind": "phase", "attempt": attempt, "time": START + seconds, "phase": phase}
            file.write(json.dumps(event) + "\n")


def beat(run: RunDir, **values: Any) -> None:
    write_json(run.heartbeat, values)


def states(run: RunDir, seconds: float) -> dict[str, str]:
    return {phase.name: phase.state for phase in run_progress(run, START + seconds).phases}


def test_before_the_worker_speaks_everything_is_to_come(run: RunDir) -> None:
    progress = run_progress(run, START)
    assert progress.fraction == 0.0 and progress.left_s > 120.0
    assert progress.now is not None and progress.now.name == "load"


def test_what_is_to_come_takes_what_the_estimate_says(run: RunDir) -> None:
    pace = {"seconds": 100.0, "evaluating_s": 20.0, "loading_s": 7.0, "sampling_s": 9.0}
    write_json(run.estimate, {"pace": pace | {"saving_s": 4.0}})
    expected = {phase.name: phase.total_s for phase in run_progress(run, START).phases}
    assert expected == pytest.approx(
        {"load": 7.0, "data": 3.0, "base": 2.0, "sample": 3.0, "train": 126.0, "save": 4.0}
    ), "the base is one of ten evaluations, the first sample one of three"
    write_json(run.estimate, {"pace": pace | {"saving_s": 4.0, "probing_s": 60.0}})
    probed = {phase.name: phase.total_s for phase in run_progress(run, START).phases}
    assert probed == pytest.approx(expected | {"base": 12.0, "train": 176.0}), (
        "a sixth is the base's"
    )


def test_the_first_sample_is_no_loading(run: RunDir) -> None:
    phases(run, (0, "loading"), (5, "tokenising"), (6, "loading"), (9, "evaluating"),
           (19, "loading"), (20, "sampling"))  # fmt: skip
    beat(run, phase="sampling", done=12, total=48, unit="token", text="I am")
    progress = run_progress(run, START + 24)
    assert states(run, 24) == {
        "load": "done", "data": "done", "base": "done", "sample": "now", "train": "next",
        "save": "next",
    }  # fmt: skip
    assert progress.text == "I am"
    now = progress.now
    assert now is not None and (now.done, now.total) == (12, 48)
    assert (now.spent_s, now.total_s) == (4.0, 16.0), "a quarter took four seconds"
    spent = {phase.name: phase.spent_s for phase in progress.phases}
    assert spent["load"] == 9.0 and spent["base"] == 10.0
    assert progress.left_s == pytest.approx(12 + 120 + 3), "the training as it was estimated"
    assert progress.fraction == pytest.approx(24 / (24 + 135))


def test_evaluations_between_steps_are_part_of_the_training(run: RunDir) -> None:
    phases(run, (0, "loading"), (10, "training"), (30, "evaluating"), (35, "saving"),
           (36, "sampling"), (40, "training"))  # fmt: skip
    beat(run, phase="training", done=12, total=60, unit="step", eta_s=80.0)
    progress = run_progress(run, START + 50)
    now = progress.now
    assert now is not None and now.name == "train"
    assert (now.spent_s, now.total_s) == (40.0, 120.0)
    assert progress.left_s == pytest.approx(80.0 + 3.0)
    assert (now.doing, now.done, now.total) == ("", 12, 60)
    beat(run, phase="evaluating", done=3, total=22, unit="row")
    now = run_progress(run, START + 50).now
    assert now is not None and now.name == "train"
    assert (now.doing, now.done, now.total) == ("evaluating", 3, 22), "22 rows are no steps"


def test_the_last_saving_is_a_phase_of_its_own(run: RunDir) -> None:
    phases(run, (0, "loading"), (10, "training"), (70, "saving"))
    with run.events.open("a") as file:
        file.write(json.dumps({"kind": "plan", "steps": 2, "resumed_at": 0}) + "\n")
    run.metrics.write_text(json.dumps({"kind": "train", "attempt": 1, "step": 2}) + "\n")
    beat(run, phase="saving")
    assert states(run, 71)["train"] == "done" and states(run, 71)["save"] == "now"


def test_a_run_has_only_the_phases_that_it_goes_through(run: RunDir) -> None:
    write_json(run.spec, {"data": {"eval_fraction": 0.0}, "train": {"sample_steps": 0}})
    assert list(states(run, 0)) == ["load", "data", "train", "save"]


def test_an_earlier_attempt_does_not_count(run: RunDir) -> None:
    phases(run, (0, "loading"), (10, "training"))
    phases(run, (1000, "loading"), attempt=2)
    progress = run_progress(run, START + 1004)
    assert progress.now is not None and progress.now.name == "load"
    assert sum(phase.spent_s for phase in progress.phases) == 4.0


@pytest.mark.parametrize("odd", ["x", None, [1], {"phase": 3}, float("nan")])
def test_a_damaged_record_is_no_progress(run: RunDir, odd: Any) -> None:
    run.events.write_text(json.dumps({"kind": "phase", "time": odd, "phase": odd}) + "\n")
    beat(run, phase=odd, done=odd, total=odd, eta_s=odd, text=odd)
    progress = run_progress(run, START)
    assert 0.0 <= progress.fraction <= 1.0 and progress.left_s >= 0.0


def test_a_resumed_run_measures_no_base_and_samples_nothing_first(run: RunDir) -> None:
    with run.events.open("a") as file:
        file.write(json.dumps({"kind": "plan", "steps": 9, "resumed_at": 4}) + "\n")
    assert list(states(run, 0)) == ["load", "data", "train", "save"]
