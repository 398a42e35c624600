"""What a finished run leaves behind, on the one trained pair that these tests share."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from lab.atomic_files import read_object
from lab.compare.comparison import compare
from lab.compare.run_figures import run_figures
from lab.paths import RunDir
from lab.runs import record_reader
from lab.runs.status import status


@pytest.fixture
def pair(trained: list[RunDir]) -> list[RunDir]:
    return trained


def test_a_finished_run_tells_everything(pair: list[RunDir]) -> None:
    full, lora = map(run_figures, pair)
    assert status(pair[0]).state == "done"
    assert full.trainable == full.parameters and lora.trainable
    # all-linear, rank 16, two layers: r (in + out) summed over the seven projections
    layer = 16 * ((32 + 32) * 2 + (32 + 16) * 2 + (32 + 64) * 3)
    assert lora.trainable == 2 * layer < (full.trainable or 0)
    for figures in (full, lora):
        assert figures.steps == 12 and figures.flops > 0 and (figures.peak_bytes or 0) > 1e8
        assert figures.loss is not None and figures.base_loss is not None
        assert figures.loss < figures.base_loss and (figures.tokens_per_s or 0) > 0
    comparison = compare(pair, by="tokens")
    assert comparison.terms.unequal == () and comparison.common == full.tokens == lora.tokens


def test_the_directory_holds_the_contract(pair: list[RunDir]) -> None:
    run = pair[1]
    spec = read_object(run.spec)
    assert spec is not None
    assert (
        spec["train"]["precision"] == "float32" and spec["train"]["loss_implementation"] == "fused"
    )
    assert spec["requested"]["method"] == {"name": "lora"} and spec["method"]["rank"] == 16
    assert "auto" not in json.dumps({key: spec[key] for key in ("train", "method")})
    environment = read_object(run.environment)
    assert environment is not None and environment["packages"]["torch"].startswith("2.")
    receipt = read_object(run.artifact / "receipt.json")
    assert receipt is not None and set(receipt["weights"]) == {"adapter_model.safetensors"}
    assert (run.artifact / "chat_template.jinja").is_file()
    kinds = {record["kind"] for record in record_reader.read_lines(run.metrics)[0]}
    assert kinds >= {"train", "eval"}
    phases = [event["phase"] for event in record_reader.events(run, "phase")]
    order = ["loading", "tokenising", "evaluating", "training", "ended"]
    assert [phases.index(name) for name in order] == sorted(phases.index(name) for name in order)
    assert not list(run.path.rglob("*.bin")) and not list(run.path.rglob("*.pt"))


def test_cumulative_counters_only_rise(pair: list[RunDir]) -> None:
    records = record_reader.metrics(pair[0], "train")
    for key in ("step", "tokens", "loss_tokens", "seconds", "flops"):
        values: list[Any] = [record[key] for record in records]
        assert values == sorted(values) and values[0] > 0
    rates = [record["train/learning_rate"] for record in records]
    assert all(0 < rate <= 1e-3 for rate in rates) and rates[-1] < rates[2]


def is_real(batch: dict[str, Any]) -> bool:
    """Whether a step works on numbers: the forecast traces the same step on fakes."""
    import torch

    return type(batch["input_ids"]) is torch.Tensor


def test_out_of_memory_is_explained_with_ranked_fixes(
    work_here: Callable[..., RunDir],
    monkeypatch: pytest.MonkeyPatch,
    lab_json: Callable[..., Any],
) -> None:
    import torch

    from lab.train import loop

    summed = loop.summed_loss

    def too_much(*args: Any, **kwargs: Any) -> Any:
        if not is_real(args[1]):
            return summed(*args, **kwargs)
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB.")

    monkeypatch.setattr(loop, "summed_loss", too_much)
    run = work_here(
        "full", train={"loss_implementation": "plain", "batch_size": 4}, data={"max_length": 256}
    )
    now = status(run)
    assert now.state == "failed" and "Out of memory during training. Largest parts" in now.message
    result = read_object(run.result)
    assert result is not None and result["out_of_memory"]["phase"] == "training"
    parts = list(result["out_of_memory"]["parts"].values())
    assert parts == sorted(parts, reverse=True)
    fixes = lab_json("fixes", run.id)["fixes"]
    saved = [fix["saves_bytes"] for fix in fixes]
    assert saved == sorted(saved, reverse=True) and all(value > 0 for value in saved)
    changes = [fix["changes"] for fix in fixes]
    assert {"train.loss_implementation": "fused"} in changes
    assert {"train.batch_size": 2, "train.gradient_accumulation_steps": 2} in changes
    halved = fixes[changes.index({"train.batch_size": 2, "train.gradient_accumulation_steps": 2})]
    assert halved["keeps_effective_batch"]
