"""The time machine: from a point of the curve to a chat with the model as it was then."""

from __future__ import annotations

import os
import shutil
from types import SimpleNamespace

import pytest

from lab import process
from lab.atomic_files import write_json
from lab.chat import models as chat_models
from lab.evals import checkpoint_loss
from lab.paths import RunDir
from lab.runs import checkpoints, index
from lab.runs.metric_series import series_of
from lab.ui import chat_panes, checkpoint_actions
from tests.ui.conftest import Page, words
from tests.ui.screen import Screen


@pytest.fixture
def steps(trained: list[RunDir]) -> list[int]:
    return [checkpoints.step_of(path) for path in checkpoints.listing(trained[1].checkpoints)]


def test_a_point_of_the_curve_is_a_step_on_every_axis(
    trained: list[RunDir], monkeypatch: pytest.MonkeyPatch
) -> None:
    lora = trained[1]
    train = series_of(lora).refresh().train
    for by in ("step", "tokens", "seconds"):
        x = float(train.get(by)[4])
        assert checkpoint_actions.step_at(lora, by, x) == 5, by
    assert checkpoint_actions.step_at(lora, "step", 0.0) == 1
    screen = Screen()
    monkeypatch.setattr(checkpoint_actions, "st", screen)
    event = SimpleNamespace(selection={"points": [{"x": 8.1, "y": 3.0}]})
    checkpoint_actions.remember(lora, event, "step")
    assert screen.session_state[checkpoint_actions.POINT] == (lora.id, 8)
    checkpoint_actions.remember(lora, SimpleNamespace(selection={"points": []}), "step")
    checkpoint_actions.remember(lora, None, "step")
    assert screen.session_state[checkpoint_actions.POINT] == (lora.id, 8), "It stays."


def test_the_checkpoint_nearest_to_the_point_is_offered(
    open_page: Page, trained: list[RunDir], steps: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    lora = trained[1]
    started: list[tuple[RunDir, int]] = []
    monkeypatch.setattr(checkpoint_loss, "start", lambda run, step: started.append((run, step)))
    point = {checkpoint_actions.POINT: (lora.id, steps[-1] - 1)}
    at = open_page("monitor", run=lora.id, session=point)
    shown = f"**Step {steps[-1]}**, the nearest checkpoint to step {steps[-1] - 1}"
    assert shown in words(at)
    at.button(key=f"monitor.point.measure.{lora.id}.{steps[-1]}").click().run()
    assert started == [(lora, steps[-1])]
    lora.exports.mkdir()
    file = checkpoint_loss.job_file(lora, steps[-1])
    write_json(file, {"phase": "loading", "process": process.identity(os.getpid())})
    at = open_page("monitor", run=lora.id, session=point)
    assert "loading · " in words(at)
    write_json(
        file, {"finish": "done", "result": {"loss": 2.345678, "rows": 5, "perplexity": 10.4}}
    )
    at = open_page("monitor", run=lora.id, session=point)
    assert "loss 2.3457 on 5 held-out rows" in words(at).replace("\\", "")
    write_json(file, {"finish": "failed", "error": "No <rows>.", "hint": "Name a set."})
    at = open_page("monitor", run=lora.id, session=point)
    assert "\\<rows\\>" in words(at)


def test_the_link_opens_the_checkpoint_of_a_run_without_a_result(
    open_page: Page, trained: list[RunDir], steps: list[int]
) -> None:
    lora = trained[1]
    for run in trained:
        shutil.rmtree(run.artifact)
    names = checkpoint_actions.models_of(lora, steps[0])
    assert names == [f"base:{index.entry(lora).model}", f"run:{lora.id}@{steps[0]}"]
    titles = chat_models.available()
    assert not any(name.startswith("run:") for name in titles)
    assert [chat_panes._is_known(name, titles) for name in names] == [True, True]
    unknown = [
        f"run:{lora.id}@3",
        f"run:{lora.id}",
        "run:x@4",
        "base:org/other",
        f"run:{lora.id}@x",
    ]
    assert [chat_panes._is_known(name, titles) for name in unknown] == [False] * 5
    at = open_page("chat", models=",".join(names))
    assert at.session_state["chat.models"] == names
    assert at.query_params["models"] == [",".join(names)] or at.query_params["models"] == ",".join(
        names
    )
