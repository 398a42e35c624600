"""From the spec to the first step, and again after a stop: seeds, rows, what is measured once."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lab.atomic_files import read_object, write_json
from lab.data import prepare
from lab.data.batches import TrainingOrder
from lab.paths import RunDir
from lab.runs import actions, record_reader
from lab.runs.held_out_losses import held_out_losses
from lab.runs.status import status
from lab.spec import RunSpec
from lab.train import attempt
from lab.train.telemetry import Telemetry
from tests.answers import checked
from tests.conftest import attempt_again, attempt_here

Work = Callable[..., RunDir]
SHORT = {"max_steps": 2, "eval_steps": 0, "save_steps": 0}


def stream_of(run: RunDir, tokenizer: Any, seed: int, bucket: int = 0) -> TrainingOrder:
    spec = RunSpec.from_stored(read_object(run.spec) or {})
    return TrainingOrder(prepare.prepare(spec, tokenizer).train, seed, bucket)


def warnings(run: RunDir) -> str:
    return "\n".join(event["message"] for event in record_reader.events(run, "warning"))


@pytest.mark.parametrize("group_by_length", ["off", "on"])
def test_rows_come_in_the_order_of_the_seed(
    small_run: Work, small_tokenizer: Any, group_by_length: str
) -> None:
    """Told by the rows of the first batch and by the tokens of each step after it."""
    train = {"seed": 5, "max_steps": 8, "eval_steps": 0, "save_steps": 0}
    run = small_run("lora", train=train, data={"group_by_length": group_by_length})
    bucket = 2 if group_by_length == "on" else 0
    ours, other = (stream_of(run, small_tokenizer, seed, bucket) for seed in (5, 0))
    first = (read_object(run.first_batch) or {})["rows"]
    shown = [[token["id"] for token in row["tokens"]] for row in first]
    assert shown == [ours[0].ids, ours[1].ids] != [other[0].ids, other[1].ids]
    sizes = [ours[place].tokens for place in range(16)]
    expected = [sum(sizes[: 2 * step]) for step in range(1, 9)]
    assert [record["tokens"] for record in record_reader.metrics(run, "train")] == expected


def test_the_start_of_an_adapter_is_drawn_from_the_seed(small_run: Work, small_model: Path) -> None:
    import peft
    from transformers import AutoModelForCausalLM, set_seed

    options = {"name": "lora", "rank": 2, "dropout": 0.0, "target_modules": ["q_proj"]}
    train = {**SHORT, "learning_rate": 1e-12, "max_steps": 1, "seed": 3}
    run = small_run(options, train=train)
    drawn = {}
    for seed in (3, 0):
        model = AutoModelForCausalLM.from_pretrained(small_model)
        set_seed(seed)
        settings = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
        drawn[seed] = peft.get_peft_model(model, settings)
    weights = load_file(run.artifact / "adapter_model.safetensors")
    for name in (name for name in weights if "lora_A" in name):
        inside = name.replace(".weight", ".default.weight")
        ours, other = (drawn[seed].get_parameter(inside) for seed in (3, 0))
        assert torch.allclose(weights[name], ours, atol=1e-6), name
        assert not torch.allclose(weights[name], other, atol=1e-3)


def test_parameters_are_counted_with_the_adapter(small_run: Work, small_model: Path) -> None:
    run = small_run({"name": "lora", "rank": 4}, train=SHORT)
    base = sum(tensor.numel() for tensor in load_file(small_model / "model.safetensors").values())
    adapter = load_file(run.artifact / "adapter_model.safetensors").values()
    own = sum(tensor.numel() for tensor in adapter)
    event = record_reader.last_event(run, "model")
    summary = (read_object(run.result) or {})["summary"]
    for found in (event, summary):
        assert (found["parameters"], found["trainable"]) == (base + own, own)
    assert summary["planned_steps"] == summary["step"] == 2 and summary["packing"] == "off"
    files = [path for path in run.artifact.rglob("*") if path.is_file()]
    assert summary["artifact_bytes"] == sum(file.stat().st_size for file in files)
    assert summary["peak_bytes"] >= max(summary["peaks"].values()) > 0
    assert {"load", "forward", "backward", "optimizer", "save"} <= summary["peaks"].keys()


def test_operations_of_virtual_tokens_are_in_the_records(small_run: Work) -> None:
    used = {}
    for count in (1, 80):
        run = small_run(
            {"name": "prompt", "num_virtual_tokens": count}, train={**SHORT, "max_steps": 1}
        )
        (record,) = record_reader.metrics(run, "train")
        used[count] = record["flops"]
        tokens = record["tokens"]
    assert used[80] > (1 + 120 / tokens) * used[1], "two rows, eighty positions before each"


def test_a_resumed_run_counts_the_operations_of_layers_that_were_opened(small_run: Work) -> None:
    method = {"name": "progressive", "trigger": "steps", "every": 1}
    run = small_run(method, train={"max_steps": 4, "eval_steps": 0, "save_steps": 2})
    (run.attempts / "1").mkdir(parents=True)
    whole = {record["step"]: record["flops"] for record in record_reader.metrics(run, "train")}
    assert attempt_again(run) == 0
    assert record_reader.last_event(run, "plan")["resumed_at"] == 2
    again = {record["step"]: record["flops"] for record in record_reader.metrics(run, "train")}
    assert again == whole, "The gradients of opened layers are operations, too."


def test_a_method_knows_how_long_the_run_is(small_run: Work) -> None:
    """AdaLoRA fits its budget to the steps: at the end two ranks a layer are left."""
    method = {"name": "adalora", "rank": 6, "target_rank": 2}
    run = small_run(method, train={**SHORT, "max_steps": 10, "learning_rate": 1e-2})
    settings = json.loads((run.artifact / "adapter_config.json").read_text())
    assert settings["total_step"] == 10
    left = sum(sum(ranks) for ranks in settings["rank_pattern"].values())
    assert left == 14 * 2


def test_settings_of_recomputation_reach_the_model(
    small_run: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests: list[Any] = []
    recompute = attempt.checkpoint_activations

    def note(model: Any, first: int | None = None) -> None:
        requests.append(first)
        recompute(model, first)

    monkeypatch.setattr(attempt, "checkpoint_activations", note)
    on = {**SHORT, "activation_checkpointing": "on"}
    small_run("lora", train=on)
    small_run("lora", train={**on, "checkpointed_layers": 1})
    small_run("lora", train={**SHORT, "activation_checkpointing": "off"})
    assert requests == [None, 1]


def test_a_second_attempt_measures_and_shows_nothing_twice(small_run: Work) -> None:
    train = {"max_steps": 5, "save_steps": 3, "sample_steps": None, "eval_steps": 0}
    run = small_run("lora", train=train)
    first = run.first_batch.read_bytes()
    shutil.copytree(run.artifact, run.path / "before")
    (run.attempts / "1").mkdir(parents=True)
    assert attempt_again(run) == 0
    assert record_reader.last_event(run, "plan")["resumed_at"] == 3
    assert run.metrics.read_text().count('"of": "base"') == 1, "the base is measured once"
    rows, data = held_out_losses(run), record_reader.last_event(run, "data")
    assert rows is not None and rows.rows_hash == data["held_out_hash"] != data["train_hash"]
    last = record_reader.metrics(run, "eval")[-1]
    assert rows.steps[-1] == last["step"] == 5
    assert rows.sums[-1].sum() / rows.tokens.sum() == pytest.approx(last["eval/loss"], rel=1e-5)
    assert [event["step"] for event in record_reader.events(run, "sample")].count(0) == 1
    assert run.first_batch.read_bytes() == first
    assert "Resumed in a different environment" not in warnings(run)
    ours, before = (
        load_file(folder / "adapter_model.safetensors")
        for folder in (run.artifact, run.path / "before")
    )
    assert all(torch.equal(weight, before[name]) for name, weight in ours.items())


def test_other_versions_are_told_by_the_attempt_before(small_run: Work) -> None:
    """The tenth attempt is newer than the ninth, whatever the letters say."""
    run = small_run("lora", train={"max_steps": 3, "save_steps": 2, "eval_steps": 0})
    now = read_object(run.environment) or {}
    other = now | {"threads": 99, "packages": now["packages"] | {"torch": "0.4.1"}}
    for number, found in ((9, now), (10, other), (11, now)):
        (run.attempts / str(number)).mkdir(parents=True)
        write_json(run.attempts / str(number) / "environment.json", found)
    (run.attempts / "11").rename(run.path / "away")
    assert attempt_again(run) == 0
    messages = warnings(run)
    assert f"torch 0.4.1 then, {now['packages']['torch']} now" in messages
    assert f"threads 99 then, {now['threads']} now" in messages and "device" not in messages
    (run.path / "away").rename(run.attempts / "11")
    run.events.write_text("")
    assert attempt_again(run) == 0
    assert "Resumed in a different environment" not in warnings(run), "the newest one counts"


def test_other_held_out_rows_are_no_resume(
    small_run: Work, small_chats: Path, tmp_path: Path
) -> None:
    """What an evaluation measures may not change under way, even if what is learned stays."""
    file = tmp_path / "held.jsonl"
    lines = small_chats.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:6]))
    run = small_run("lora", train={"max_steps": 3, "save_steps": 2}, data={"held_out": str(file)})
    file.write_text("".join(lines[:5]))
    assert attempt_again(run) == 1
    assert "has changed since the last attempt" in status(run).message
    file.write_text("".join(lines[:6]))
    records = [json.loads(line) for line in run.events.read_text().splitlines()]
    other = [r | {"train_hash": "ab12"} if r["kind"] == "data" else r for r in records]
    run.events.write_text("".join(f"{json.dumps(record)}\n" for record in other))
    assert attempt_again(run) == 1, "nor are other rows to learn from"
    assert "has changed since the last attempt" in status(run).message


def test_the_bases_own_answers_are_mixed_in(
    small_run: Work, small_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempt.forgetting, "prompts", lambda: ["w3", "w4 w5", "w6"])
    run = small_run("lora", data={"general_fraction": 0.1}, train=SHORT)
    event = record_reader.last_event(run, "data")
    assert (event["general_rows"], event["train_rows"]) == (2, 21), "a tenth of all"
    phases = [record["phase"] for record in record_reader.events(run, "phase")]
    assert phases.index("evaluating") < phases.index("training"), "the base answers first"


def test_a_lost_part_of_a_checkpoint_is_told(small_run: Work) -> None:
    run = small_run("lora", train={"max_steps": 3, "save_steps": 2, "eval_steps": 0})
    (run.checkpoints / "step-2" / "extra.safetensors").unlink()
    write_json(run.resume, {"v": 1, "settings": {"max_steps": 4}, "incomplete": True})
    assert attempt_again(run) == 0
    assert "step-2 is missing extra.safetensors; that state is reset" in warnings(run)
    assert "Settings changed from step 2 on: train.max_steps 4 (was 3)" in warnings(run)
    assert record_reader.metrics(run, "train")[-1]["step"] == 4


def test_a_sigterm_stops_the_run_with_a_result(
    small_run: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a machine sends that shuts down."""
    write = Telemetry.metric

    def metric(self: Telemetry, kind: str, **values: Any) -> None:
        write(self, kind, **values)
        if kind == "train" and values["step"] == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Telemetry, "metric", metric)
    run = small_run("lora", train={**SHORT, "max_steps": 9})
    assert status(run).state == "stopped" and run.artifact.is_dir()
    assert record_reader.metrics(run, "train")[-1]["step"] in (2, 3)
    assert list(run.checkpoints.glob("step-*"))


def test_rows_that_have_grown_since_the_check_are_told(small_spec: Any) -> None:
    checked_run = checked(small_spec(train=SHORT))
    forecast, settings = checked_run.forecast, checked_run.forecast.settings
    assert settings is not None and settings.knows_rows
    for longest in (settings.longest_row, settings.longest_row - 1):
        known = replace(forecast, settings=replace(settings, longest_row=longest))
        run = actions.create_run_dir(replace(checked_run, forecast=known))
        assert attempt_here(run) == 0
        has_grown = f"its longest row has {settings.longest_row} tokens now" in warnings(run)
        assert has_grown == (longest < settings.longest_row)
