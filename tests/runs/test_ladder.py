"""The short runs of a ladder choose a learning rate, whoever is killed on the way."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lab import paths
from lab.atomic_files import read_object, write_json
from lab.paths import RunDir
from lab.runs import ladder, queue, supervisor
from lab.runs.ladder import Ladder
from lab.runs.status import status

MakeRun = Callable[..., RunDir]


@pytest.fixture
def make_run() -> MakeRun:
    """A run directory without a worker: queued, or ended with an evaluation loss."""

    def make(loss: float | None = None, state: str = "", rate: float = 1e-4) -> RunDir:
        run = RunDir(paths.runs() / paths.new_run_id("lora"))
        paths.make_folder(run.path)
        write_json(run.spec, {"method": {"name": "lora"}, "train": {"learning_rate": rate}})
        if loss is not None:
            records = [
                {"kind": "eval", "step": 3, "eval/loss": 9.0},
                {"kind": "eval", "step": 6, "eval/loss": loss},
                {"kind": "eval", "step": 0, "of": "base", "eval/loss": 0.1},
            ]
            run.metrics.write_text("".join(json.dumps(record) + "\n" for record in records))
        if state:
            write_json(run.result, {"state": state})
        else:
            write_json(run.queue, {"order": float(len(paths.all_runs()))})
        return run

    return make


def rate_of(run: RunDir) -> float:
    return float((read_object(run.spec) or {})["train"]["learning_rate"])


def test_the_rate_of_the_lowest_final_loss_is_trained(make_run: MakeRun) -> None:
    probes = [make_run(loss, "done") for loss in (2.5, 2.25, 2.75)]
    run = make_run()
    ladder.write(
        run, Ladder({p.id: r for p, r in zip(probes, (1e-4, 3e-4, 1e-3), strict=True)}, 1e-4)
    )
    assert not ladder.is_waiting(run) and ladder.settle(run)
    assert rate_of(run) == 3e-4 and not ladder.is_needless(run)
    choice = ladder.choice_of(run)
    assert choice is not None and choice.losses == {
        probe.id: loss for probe, loss in zip(probes, (2.5, 2.25, 2.75), strict=True)
    }
    # a resume of the run keeps its rate, though a probe is gone by then
    (probes[1].result).unlink()
    assert not ladder.is_waiting(run) and ladder.settle(run) and rate_of(run) == 3e-4


def test_a_probe_that_did_not_get_to_its_end_has_no_say(make_run: MakeRun) -> None:
    failed, stopped, done = make_run(1.0, "failed"), make_run(1.5, "stopped"), make_run(2.0, "done")
    run = make_run()
    rates = {failed.id: 1e-5, stopped.id: 1e-4, done.id: 1e-3, "20200101-000000-gone-abcd": 1.0}
    ladder.write(run, Ladder(rates, 1e-4))
    assert not ladder.is_waiting(run), "What was deleted has ended, too."
    assert ladder.settle(run) and rate_of(run) == 1e-3


def test_the_default_is_not_trained_twice(make_run: MakeRun) -> None:
    low, default = make_run(2.0, "done"), make_run(1.0, "done")
    run = make_run()
    ladder.write(run, Ladder({low.id: 1e-5, default.id: 1e-4}, 1e-4))
    assert not ladder.settle(run)
    now = status(run)
    assert now.state == "cancelled" and "Not needed" in now.message and ladder.is_needless(run)
    run.result.unlink()  # as if the supervisor had been killed before it wrote it
    assert not ladder.settle(run) and status(run).state == "cancelled"
    (run.attempts / "1").mkdir(parents=True)
    run.result.rename(run.attempts / "1" / "result.json")
    assert ladder.settle(run), "Who resumes it wants it trained."


def test_without_any_probe_the_run_fails_and_says_why(make_run: MakeRun) -> None:
    probe, run = make_run(1.0, "crashed"), make_run()
    ladder.write(run, Ladder({probe.id: 1e-5}, 1e-4))
    assert not ladder.settle(run)
    assert status(run).state == "failed" and "short runs" in status(run).message


def test_the_queue_passes_by_what_waits_for_its_probes(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where somebody has put it in front of them."""
    started: list[str] = []

    def start(self: supervisor.Supervisor, run: RunDir, gpu: str | None) -> None:
        started.append(run.id)
        write_json(run.result, {"state": "done"})

    monkeypatch.setattr(supervisor.Supervisor, "_start", start)
    tuned = make_run()
    probes = [make_run(2.0), make_run(1.0)]
    ladder.write(tuned, Ladder({probes[0].id: 1e-5, probes[1].id: 1e-3}, 1e-4))
    loop = supervisor.Supervisor()
    assert loop.tick()
    assert started == [probe.id for probe in probes]
    assert status(tuned).message == ladder.WAITING and rate_of(tuned) == 1e-4
    # claimed by a supervisor that was killed before it started the run
    assert queue.claim(tuned)
    queue.recover()
    supervisor.Supervisor().tick()
    assert started[-1] == tuned.id and rate_of(tuned) == 1e-3


@pytest.mark.parametrize("at", ["spec.json", "ladder.chosen.json"])
def test_who_is_killed_while_choosing_has_chosen_nothing_else(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    low, high, run = make_run(2.0, "done"), make_run(1.0, "done"), make_run()
    ladder.write(run, Ladder({low.id: 1e-5, high.id: 1e-3}, 1e-4))

    def killed(path: Path, value: Any) -> None:
        if path.name == at:
            raise KeyboardInterrupt
        write_json(path, value)

    with monkeypatch.context() as patch:
        patch.setattr(ladder, "write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            ladder.settle(run)
    assert ladder.settle(run) and rate_of(run) == 1e-3, "the next supervisor decides the same"
