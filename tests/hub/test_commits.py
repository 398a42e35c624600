"""A run knows the commit that it was checked with, and everybody uses that one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lab.atomic_files import read_object, write_json
from lab.chat import models as chat_models
from lab.evals.held_out import evaluate
from lab.export.merge import merge
from lab.models import catalog, weights_hash
from lab.paths import RunDir
from lab.runs import actions, record_reader, resume_settings
from tests.answers import check, checked
from tests.conftest import attempt_here
from tests.hub.conftest import NAME, make_micro_model
from tests.hub.stand_in import StandIn

Spec = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model with other weights: what a branch moves on to."""
    folder = tmp_path_factory.mktemp("other") / "model"
    make_micro_model(folder, seed=1)
    return folder


def warnings(run: RunDir) -> str:
    return " ".join(event["message"] for event in record_reader.events(run, "warning"))


def test_a_run_keeps_the_commit_that_it_was_checked_with(
    stand_in: StandIn, micro_model: Path, other_model: Path, hub_spec: Spec, tmp_path: Path
) -> None:
    first = stand_in.commit(NAME, micro_model)
    checked_run = checked(hub_spec(train={"max_steps": 2}))
    assert checked_run.spec.model == f"{NAME}#{first}"
    run = actions.create_run_dir(checked_run)  # it waits in the queue
    second = stand_in.commit(NAME, other_model)
    attempt_here(run)
    assert (read_object(run.result) or {})["state"] == "done"
    receipt = read_object(run.artifact / "receipt.json") or {}
    trained_on = weights_hash.hash_of(micro_model, "first")
    assert receipt["base"] == {
        "model": f"{NAME}#{first}", "weights": trained_on, "commit": first
    }, "the queued run began on what it was checked with"  # fmt: skip
    told = f"The branch main of '{NAME}' has moved on to {second[:12]}"
    assert told in warnings(run) and first[:12] in warnings(run)

    named = chat_models.parse(f"run:{run.id}")
    loaded = chat_models.load(named)
    assert told in loaded.note, "chat uses the commit, and says so"
    (row,) = evaluate([named])
    assert told in row.note and row.loss > 0
    merged = merge(run, tmp_path / "merged")
    assert told in merged.note

    again = check(hub_spec() | {"init_from_run": f"run:{run.id}"})
    assert again["problems"] == [], "a new run begins with its weights, on its commit"
    assert again["spec"]["model"] == f"{NAME}#{first}"
    assert any(told in text for text in again["facts"]["warnings"])
    fresh = check(hub_spec())
    assert fresh["spec"]["model"] == f"{NAME}#{second}", "a run of its own takes the branch"


def test_a_resumed_run_goes_on_with_its_commit(
    stand_in: StandIn, micro_model: Path, other_model: Path, hub_spec: Spec
) -> None:
    first = stand_in.commit(NAME, micro_model)
    run = actions.create_run_dir(checked(hub_spec(train={"max_steps": 2})))
    attempt_here(run)
    before = record_reader.metrics(run, "eval")[-1]["eval/loss"]
    stand_in.commit(NAME, other_model)
    write_json(run.resume, {"v": 1, "settings": {"max_steps": 4}, "incomplete": False})
    for file in (run.result, run.process):
        file.unlink()
    attempt_here(run)
    assert (read_object(run.result) or {})["state"] == "done"
    after = record_reader.metrics(run, "eval")[-1]["eval/loss"]
    assert abs(after - before) < 0.5, "the same base, two steps further"
    assert record_reader.last_event(run, "base")["commit"] == first
    assert "has moved on" in warnings(run)


def test_a_run_from_before_commits_were_kept_stays_with_its_first_one(
    stand_in: StandIn, micro_model: Path, other_model: Path, hub_spec: Spec
) -> None:
    first = stand_in.commit(NAME, micro_model)
    run = actions.create_run_dir(checked(hub_spec(train={"max_steps": 2})))
    spec = json.loads(run.spec.read_text()) | {"model": NAME}
    run.spec.write_text(json.dumps(spec))
    attempt_here(run)
    stand_in.commit(NAME, other_model)
    assert resume_settings.spec_of(run).model == f"{NAME}#{first}"
    assert chat_models.parse(f"run:{run.id}").base == f"{NAME}#{first}"


def test_a_branch_and_a_commit_can_be_named(
    stand_in: StandIn, micro_model: Path, other_model: Path, hub_spec: Spec
) -> None:
    stand_in.commit(NAME, micro_model)
    other = stand_in.commit(NAME, other_model, ref="refs/pr/1")
    for revision in ("refs/pr/1", other):
        plan = check(hub_spec(model=f"{NAME}#{revision}"))
        assert plan["spec"]["model"] == f"{NAME}#{other}"
    (problem,) = check(hub_spec(model=f"{NAME}#v9"))["problems"]
    assert "has no such branch, tag or commit" in problem["message"]
    for text in (f"{NAME}#", f"{NAME}#../x", f"{NAME}#a b"):
        (problem,) = check(hub_spec(model=text))["problems"]
        assert "Unknown model" in problem["message"]


def test_a_cached_commit_needs_no_hub(stand_in: StandIn, micro_model: Path, hub_spec: Spec) -> None:
    stand_in.commit(NAME, micro_model)
    run = actions.create_run_dir(checked(hub_spec(train={"max_steps": 2})))
    attempt_here(run)
    stand_in.close()
    plan = check(hub_spec())
    assert plan["problems"] == [], "the branch is what the cache knows of it"
    assert catalog.resolve(plan["spec"]["model"]).revision == plan["spec"]["model"][-40:]
    chat_models.load(chat_models.parse(f"run:{run.id}"))
