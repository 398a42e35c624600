"""Losses on held-out rows: which rows, on which terms, and what they are called."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from bench.small_model import VOCABULARY
from lab.atomic_files import read_object, write_json
from lab.chat import models as chat_models
from lab.data import template_lock
from lab.errors import LabError
from lab.evals import held_out
from lab.evals.held_out import evaluate
from lab.paths import RunDir
from tests.conftest import write_rows


def named(run: RunDir) -> list[chat_models.ModelRef]:
    return [chat_models.parse(f"run:{run.id}")]


def with_data(run: RunDir, **changes: Any) -> None:
    stored = read_object(run.spec) or {}
    stored["data"] |= changes
    write_json(run.spec, stored)


def test_perplexity_is_e_to_the_loss_in_nats(trained: list[RunDir]) -> None:
    (row,) = evaluate(named(trained[1]))
    assert row.perplexity == pytest.approx(math.e**row.loss)
    uniform = math.log(VOCABULARY)
    assert 1.0 < row.loss < uniform + 0.5


def test_the_held_out_rows_are_those_of_the_first_run(trained: list[RunDir]) -> None:
    run = trained[1]
    (row,) = evaluate(named(run))
    assert row.rows == 5, "A fifth of 24 rows."
    events = [json.loads(line) for line in run.events.read_text().splitlines()]
    data = next(event for event in events if event["kind"] == "data")
    assert row.data == data["held_out_hash"] != data["train_hash"]
    with_data(run, eval_fraction=0.0)
    with pytest.raises(LabError, match="held no rows out"):
        evaluate(named(run))


def test_all_rows_of_a_set_that_is_named_are_measured_however_the_run_read_its_own(
    trained: list[RunDir], chats: Path, tmp_path: Path
) -> None:
    run = trained[1]
    other = tmp_path / "other.jsonl"
    write_rows(other, [{"q": "x", "a": "y"}] * 3)
    (plain,) = evaluate(named(run), str(chats))
    assert plain.rows == 24
    with_data(
        run,
        columns={"prompt": "q", "completion": "a"},
        format="prompt-completion",
        max_examples=3,
        general_fraction=0.5,
        general_dataset=str(other),
        eval_fraction=0.5,
        held_out=str(other),
    )
    (again,) = evaluate(named(run), str(chats))
    same = [(one.rows, one.tokens, one.data) for one in (plain, again)]
    assert same[0] == same[1], "Columns, rows and a mix of the run's own file say nothing of it."
    assert again.loss == pytest.approx(plain.loss)


def test_the_system_prompt_is_that_of_the_receipt(trained: list[RunDir], chats: Path) -> None:
    run = trained[1]
    (before,) = evaluate(named(run), str(chats))
    with_data(run, system_prompt="Written into the spec afterwards.")
    (after,) = evaluate(named(run), str(chats))
    assert (after.tokens, after.data) == (before.tokens, before.data)


def test_models_that_see_other_tokens_in_the_same_rows_are_not_compared(
    trained: list[RunDir], tiny_model: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "lower"
    shutil.copytree(tiny_model, copy)
    file = copy / "tokenizer.json"
    content = json.loads(file.read_text())
    content["normalizer"] = {"type": "Lowercase"}
    file.write_text(json.dumps(content))
    with pytest.raises(LabError, match="different tokens in the same rows"):
        evaluate([*named(trained[1]), chat_models.parse(f"base:{copy}")])
    same = tmp_path / "same"
    shutil.copytree(tiny_model, same)
    rows = evaluate([*named(trained[1]), chat_models.parse(f"base:{same}")])
    assert rows[0].data == rows[1].data


def test_rows_on_other_terms_than_a_result_was_trained_on_are_not_measured(
    trained: list[RunDir],
) -> None:
    """A model that learned under another system prompt would look worse than it is."""
    full, lora = trained
    assert [row.model for row in evaluate([*named(full), *named(lora)])] == [
        f"run:{full.id}", f"run:{lora.id}",
    ]  # fmt: skip
    file = lora.artifact / "receipt.json"
    receipt = read_object(file) or {}
    tokenizer = chat_models.load(named(lora)[0]).tokenizer
    write_json(file, receipt | {"lock": template_lock.make_lock(tokenizer, "Odd.", "assistant")})
    refused = rf"run:{lora.id} was trained with the system prompt 'Odd\.'; these rows have ''"
    with pytest.raises(LabError, match=refused):
        evaluate([*named(full), *named(lora)])
    assert held_out.losses(full, lora)[0] == [None, None]
    assert "was trained with the system prompt" in held_out.losses(full, lora)[1]


def test_a_base_alone_needs_a_set_and_no_model_reads_more_than_it_can(
    trained: list[RunDir], tiny_model: Path, tmp_path: Path
) -> None:
    base = [chat_models.parse(f"base:{tiny_model}")]
    with pytest.raises(LabError, match="A base model has no held-out rows"):
        evaluate(base)
    long = tmp_path / "long.jsonl"
    write_rows(long, [{"prompt": "Why?", "completion": "so " * 700}])
    with_data(trained[1], max_length=1024)
    with pytest.raises(LabError, match=r"longest row has \d{3,},?\d* tokens, and run:.* reads 512"):
        evaluate(named(trained[1]), str(long))
