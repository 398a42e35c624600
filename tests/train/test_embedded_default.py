"""The built-in model itself, whole: other tests train a small model under its name."""

from __future__ import annotations

import pytest

from lab.models import catalog
from lab.runs import record_reader
from lab.runs.status import status
from tests.conftest import SHARED_MODELS, run_here


def test_the_embedded_default_is_a_model_that_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight chats and as many steps; a model of random weights begins at ln 49,152 = 10.8."""
    monkeypatch.setenv("LAB_MODELS", str(SHARED_MODELS))
    assert catalog.BUILT_IN[0].folder.parent == SHARED_MODELS
    run = run_here(
        {
            "name": "whole",
            "model": "builtin:smollm2-135m-instruct",
            "data": {"dataset": "builtin:persona-chats", "max_length": 64},
            "method": {"name": "lora"},
            "train": {
                "batch_size": 1, "max_steps": 8, "learning_rate": 2e-3, "eval_steps": 0,
                "sample_steps": 0, "save_steps": 0,
            },
        }
    )  # fmt: skip
    assert status(run).state == "done", status(run)
    losses = [record["train/loss"] for record in record_reader.metrics(run, "train")]
    first, last = sum(losses[:3]) / 3, sum(losses[-3:]) / 3
    assert 2.0 < first < 5.0, "it has learned to speak before"
    assert last < first, "and learns"
    assert len(losses) == 8
