"""Whole runs of the methods that differ most, from the spec to the answer in the chat."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.small_model import make_model
from lab.atomic_files import read_object
from lab.chat import generate
from lab.chat import models as chat_models
from lab.chat.settings import GenerationSettings
from lab.runs import record_reader
from lab.runs.status import status
from tests.conftest import run_here


@pytest.mark.parametrize("name", ["qlora", "prefix", "trainable_tokens", "adalora"])
def test_a_run_ends_and_its_result_answers(
    name: str, make_spec: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    spec = make_spec(name, train={"max_steps": 4, "save_steps": 2, "learning_rate": 1e-2})
    if name == "qlora":
        make_model(tmp_path / "wide", width=64)
        spec["model"] = str(tmp_path / "wide")
    run = run_here(spec)
    assert status(run).state == "done", status(run)
    summary = (read_object(run.result) or {})["summary"]
    predicted = read_object(run.estimate) or {}
    assert summary["trainable"] == predicted["trainable"] > 0
    assert summary["artifact_bytes"] < 5_000_000, "an adapter, not a model"
    losses = [record["eval/loss"] for record in record_reader.metrics(run, "eval")]
    assert losses[-1] < losses[0]

    base = chat_models.load(chat_models.parse(f"base:{(read_object(run.spec) or {})['model']}"))
    before = {key: value.clone() for key, value in base.model.state_dict().items()}
    conversation = [{"role": "user", "content": "What is 3 plus 3?"}]
    settings = GenerationSettings(max_new_tokens=4)
    for which in (f"run:{run.id}", f"run:{run.id}@2"):
        named = chat_models.parse(which)
        loaded = chat_models.load(named, base.model)
        answer = generate.answer(loaded, named, conversation, settings)
        assert answer.token_ids and answer.receipt.prompt_tokens > 0
    for key, value in base.model.state_dict().items():
        assert torch.equal(value, before[key]), f"{key} of the base changed"
