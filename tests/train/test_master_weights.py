"""16-bit adapters with float32 copies in the optimizer: as good as float32 ones, and resumable."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from lab import methods, optimizers
from lab.atomic_files import read_object
from lab.forecast.resolve import resolve
from lab.paths import RunDir
from lab.runs import record_reader
from lab.runs.status import status
from lab.spec import RunSpec
from lab.spec_sections import TrainSpec
from lab.train.master_weights import MASTER_KEY, MasterWeightOptimizer
from tests.conftest import attempt_again

RATE = 1e-4
TRAIN = TrainSpec(learning_rate=RATE, precision="bfloat16", adapter_precision="bfloat16")


def made(weight: torch.nn.Parameter, rule: str = "sgd") -> MasterWeightOptimizer:
    build = optimizers.get(rule).build
    return MasterWeightOptimizer(
        [{"params": [weight], "lr": RATE}], RATE, lambda group: build([group], TRAIN)
    )


def test_updates_below_the_types_resolution_count() -> None:
    """A hundred steps of 1e-4 from 1.0: bfloat16 alone stays at 1.0."""
    narrow = torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    alone = torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    rule, plain = made(narrow), torch.optim.SGD([alone], lr=RATE)
    for _ in range(100):
        for weight in (narrow, alone):
            weight.grad = torch.ones_like(weight)
        rule.step()
        plain.step()
    assert torch.equal(alone.detach(), torch.ones(4, dtype=torch.bfloat16))
    assert rule.state[narrow][MASTER_KEY] == pytest.approx(torch.full((4,), 0.99), abs=1e-5)
    assert torch.equal(narrow.detach(), torch.full((4,), 0.99).to(torch.bfloat16))


def test_what_others_write_into_a_weight_stays() -> None:
    """Pruning between two steps: its zeros stay, the other weights keep all their bits."""
    weight = torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    rule = made(weight)
    for _ in range(20):
        weight.grad = torch.ones_like(weight)
        weight.grad[:2] = 0.0
        rule.step()
        with torch.no_grad():
            weight[0] = 0.0
    assert weight[0] == 0.0 and weight[1] == 1.0
    assert rule.state[weight][MASTER_KEY][2] == pytest.approx(1.0 - 20 * RATE, abs=1e-6)


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_what_was_written_once_is_what_the_next_update_begins_with(value: float) -> None:
    """The copy must follow, or the next step would write the old weight back."""
    weight = torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    rule = made(weight)
    for step in range(6):
        weight.grad = torch.tensor([0.0, 1.0], dtype=torch.bfloat16)
        rule.step()
        if step == 2:
            with torch.no_grad():
                weight[0] = value
    assert weight[0] == value and rule.state[weight][MASTER_KEY][0] == value
    assert rule.state[weight][MASTER_KEY][1] == pytest.approx(1.0 - 6 * RATE, abs=1e-6)


def test_a_weight_without_a_gradient_stays() -> None:
    """Such as a layer that a row did not pass through."""
    weights = [torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16)) for _ in range(2)]
    build = optimizers.get("adamw").build
    rule = MasterWeightOptimizer(
        [{"params": weights, "lr": RATE}], RATE, lambda group: build([group], TRAIN)
    )
    for _ in range(3):
        weights[0].grad = torch.ones(2, dtype=torch.bfloat16)
        rule.step()
    assert torch.equal(weights[1].detach(), torch.ones(2, dtype=torch.bfloat16))
    assert weights[1] not in rule.state and (rule.state[weights[0]][MASTER_KEY] < 1.0).all()


def test_a_schedule_reaches_the_copies() -> None:
    weight = torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    rule = made(weight)
    for rate in (RATE, RATE / 4, 0.0):
        rule.param_groups[0]["lr"] = rate
        weight.grad = torch.ones_like(weight)
        rule.step()
    assert rule.state[weight][MASTER_KEY] == pytest.approx(
        torch.full((2,), 1.0 - 1.25 * RATE), abs=1e-7
    )


def test_a_wide_weight_is_updated_itself() -> None:
    weight = torch.nn.Parameter(torch.ones(4))
    rule = made(weight, "adamw")
    weight.grad = torch.ones(4)
    rule.step()
    assert MASTER_KEY not in rule.state[weight] and weight.grad is not None
    assert (weight < 1.0).all()


def test_auto_takes_the_type_of_the_base_where_copies_keep_the_bits() -> None:
    def auto(method: str, **train: Any) -> str:
        spec = RunSpec.from_json({"method": method, "train": {"learning_rate": 1e-4, **train}})
        return resolve(spec, has_bf16=True).spec.train.adapter_precision

    assert auto("lora") == auto("bottleneck") == auto("qlora") == "bfloat16"
    assert auto("lora", precision="float32") == auto("lora", precision="mixed") == "float32"
    assert auto("lora", optimizer="sgd_in_backward") == "float32", "no step to keep copies in"
    assert auto("prompt") == "float32", "the method does not go with 16 bits"
    assert auto("top_layers_lora") == "float32", "copies of the base's own weights would be large"
    assert auto("lora", adapter_precision="float32") == "float32"
    spec = RunSpec.from_json({"method": "lora"})
    narrow = replace(spec.train, adapter_precision="bfloat16")
    assert optimizers.uses_master_weights(methods.get("lora"), narrow)
    assert not optimizers.uses_master_weights(methods.get("full"), narrow)


@pytest.fixture
def narrow_run(work_here: Callable[..., RunDir]) -> Callable[..., RunDir]:
    def run(method: str, adapters: str, **train: Any) -> RunDir:
        settings = {
            "precision": "bfloat16", "adapter_precision": adapters, "sample_steps": 0,
            "max_steps": 40, "save_steps": 0, "eval_steps": 0, "learning_rate": 5e-3, **train,
        }  # fmt: skip
        return work_here(method, train=settings)

    return run


@pytest.mark.parametrize("method", ["lora", "adalora"])
def test_quality_does_not_suffer(narrow_run: Callable[..., RunDir], method: str) -> None:
    losses = {}
    for adapters in ("float32", "bfloat16"):
        run = narrow_run(method, adapters)
        assert status(run).state == "done", status(run)
        records = record_reader.metrics(run, "eval")
        losses[adapters] = [record["eval/loss"] for record in records]
    first, last = losses["float32"][0], losses["float32"][-1]
    assert last < 0.99 * first, "it learns something that could be lost"
    gained = {name: first - loss[-1] for name, loss in losses.items()}
    assert gained["bfloat16"] == pytest.approx(gained["float32"], rel=0.05)


@pytest.mark.parametrize("method", ["lora", "adalora"])
def test_a_run_resumes_with_its_copies_bit_for_bit(
    narrow_run: Callable[..., RunDir], method: str
) -> None:
    """AdaLoRA writes into its weights between the update and the checkpoint."""
    from safetensors.torch import load_file

    whole, broken = (narrow_run(method, "bfloat16", max_steps=8, save_steps=4) for _ in range(2))
    saved = load_file(broken.checkpoints / "step-4" / "optimizer.safetensors")
    copies = {name: value for name, value in saved.items() if name.endswith(f"|{MASTER_KEY}")}
    assert {value.dtype for value in copies.values()} == {torch.float32}
    if method == "adalora":
        held = load_file(broken.checkpoints / "step-4" / "trainable.safetensors")
        pruned = [(tensor == 0).sum() for name, tensor in held.items() if "lora_E" in name]
        assert sum(pruned) > 0, "saved in the middle of pruning"
    assert attempt_again(broken) == 0
    assert record_reader.last_event(broken, "plan")["resumed_at"] == 4
    ours, theirs = (
        load_file(run.artifact / "adapter_model.safetensors") for run in (whole, broken)
    )
    assert all(tensor.dtype == torch.bfloat16 for tensor in ours.values())
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    predicted = (read_object(whole.estimate) or {})["bytes"]["optimizer"]
    total = sum(
        tensor.numel() * tensor.element_size() for tensor in saved.values() if tensor.numel() > 1
    )
    if method == "adalora":  # its scores stay in memory; a checkpoint has the smoothed ones beside
        total += 3 * sum(tensor.numel() * tensor.element_size() for tensor in held.values())
    assert total == predicted, "copies and two moments, twelve bytes a parameter"
    counted = record_reader.last_event(whole, "memory")["optimizer"]
    assert counted == pytest.approx(predicted, rel=0.005), "what Monitor shows beside it"


def test_a_checkpoint_from_before_there_were_copies_goes_on() -> None:
    weight = torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    rule = made(weight, "adamw")
    moments = {name: torch.zeros_like(weight) for name in ("exp_avg", "exp_avg_sq")}
    rule.state[weight] = {"step": torch.tensor(3.0), **moments}
    weight.grad = torch.ones_like(weight)
    rule.step()
    assert rule.state[weight]["exp_avg"].dtype == torch.float32
    assert rule.state[weight]["step"] == 4.0 and (rule.state[weight][MASTER_KEY] < 1.0).all()
