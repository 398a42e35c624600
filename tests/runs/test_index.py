"""The list of runs: always as the files say, although ended runs are read once."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from lab import process
from lab.atomic_files import write_json
from lab.compare.run_figures import run_figures
from lab.errors import SpecError
from lab.paths import RunDir
from lab.runs import index
from lab.runs.result import TrainingSummary
from tests.compare.recorded import record


@pytest.fixture
def run(lab_home: Path) -> RunDir:
    run = RunDir(lab_home / "runs" / "20261122-101530-lora-k3f9")
    run.commands.mkdir(parents=True)
    write_json(
        run.spec,
        {"name": "first", "model": "m", "method": {"name": "lora"}, "data": {"dataset": "d"}},
    )
    return run


def later(file: Path, seconds: float) -> None:
    """As if it were written at another time than before, however coarse the clock."""
    os.utime(file, (2e9 + seconds, 2e9 + seconds))


def test_a_run_that_is_not_over_is_read_anew(run: RunDir) -> None:
    assert index.entry(run).status.state == "queued"
    process.register(run, os.getpid())
    assert index.entry(run).status.state == "starting"
    assert index.unfinished_runs() == index.active_runs() == [run]
    write_json(run.result, {"state": "done", "summary": {"step": 3, "tokens": "x", "ok": True}})
    entry = index.entry(run)
    assert entry.status.state == "done" and entry.summary == TrainingSummary(step=3)
    assert index.unfinished_runs() == index.active_runs() == []


def test_a_run_that_waits_is_unfinished_and_not_active(run: RunDir) -> None:
    assert index.unfinished_runs() == [run] and index.active_runs() == []


def test_a_run_that_has_ended_is_read_again_when_its_result_or_labels_change(run: RunDir) -> None:
    write_json(run.result, {"state": "failed", "summary": {"step": 3}})
    later(run.result, 1)
    assert index.entry(run).summary == TrainingSummary(step=3)
    index.update_labels(run, name="second")
    later(run.labels, 2)
    assert index.entry(run).name == "second"
    index.update_labels(run, name="third", archived=True)
    later(run.labels, 3)
    entry = index.entry(run)
    assert entry.name == "third" and entry.is_archived
    write_json(run.result, {"state": "done", "summary": {"step": 9}})
    later(run.result, 4)
    entry = index.entry(run)
    assert (entry.status.state, entry.summary) == ("done", TrainingSummary(step=9)), (
        "It was resumed."
    )


def test_labels_add_up_and_the_persons_name_counts(run: RunDir) -> None:
    assert index.entry(run).name == "first"
    index.update_labels(run, tags=" good,  small ,", notes="learns")
    index.rename(run, "  mine ")
    index.update_labels(run, archived=True)
    entry = index.entry(run)
    assert (entry.name, entry.tags, entry.notes) == ("mine", ("good", "small"), "learns")
    assert entry.is_archived and (entry.model, entry.method, entry.dataset) == ("m", "lora", "d")
    index.update_labels(run, name="", archived=False)
    entry = index.entry(run)
    assert entry.name == "first" and not entry.is_archived, "Without another name, the spec's."
    before = run.labels.read_text()
    for wrong in ({"name": "a/b"}, {"name": "x" * 121}, {"tags": "x" * 401}, {"archived": "no"}):
        with pytest.raises(SpecError):
            index.update_labels(run, **wrong)  # type: ignore[arg-type]
    assert run.labels.read_text() == before, "What is refused is not written."
    with pytest.raises(SpecError, match="unknown key 'mood'"):
        index.update_labels(run, mood="red")


def test_bytes_on_disk_are_told_apart(run: RunDir) -> None:
    before = index.disk(run)
    assert (before["result"], before["checkpoints"]) == (0, 0) and before["records"] > 0
    run.artifact.mkdir()
    (run.artifact / "weights").write_bytes(b"x" * 300)
    (run.checkpoints / "step-4").mkdir(parents=True)
    (run.checkpoints / "step-4" / "weights").write_bytes(b"x" * 5000)
    run.exports.mkdir()
    (run.exports / "Q8_0.gguf").write_bytes(b"x" * 40)
    run.metrics.write_bytes(b"x" * 20)
    assert index.disk(run) == {
        "result": 300, "checkpoints": 5000, "exports": 40, "records": before["records"] + 20,
    }  # fmt: skip


@pytest.mark.parametrize("read", [index.entry, run_figures], ids=["a line", "figures"])
def test_a_run_that_is_copied_here_is_read_again_with_each_file(lab_home: Path, read: Any) -> None:
    """Whichever file arrives last, and though the page looked before."""
    run = record("aaaa", "first", labels={"name": "second"}, rise=0.1)
    write_json(run.environment, {"device": "a processor"})
    expected = repr(read(run))
    files = sorted(path.relative_to(run.path) for path in run.path.rglob("*") if path.is_file())
    for number, last in enumerate(files):
        copy = RunDir(run.path.with_name(f"{run.id[:-4]}{'bcdefghijkmnpqrst'[number] * 4}"))
        shutil.copytree(run.path, copy.path, ignore=lambda _, names, out=last.name: {out})
        read(copy)
        shutil.copy2(run.path / last, copy.path / last)
        assert repr(read(copy)).replace(copy.id, run.id) == expected, f"{last} came last."
