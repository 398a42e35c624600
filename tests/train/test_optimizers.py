"""Every update rule: what it remembers, where it is refused, and exact resume."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lab import optimizers
from lab.optimizers import OPTIMIZERS
from lab.paths import RunDir
from lab.runs import record_reader
from lab.spec_sections import TrainSpec
from lab.train import checkpoint
from tests.answers import check
from tests.conftest import attempt_again

HERE = [name for name, rule in OPTIMIZERS.items() if rule.on_cpu]


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 96), nn.Tanh(), nn.Linear(96, 64, bias=False))


def steps(model: nn.Module, rule: Any, first: int, last: int) -> None:
    for step in range(first, last):
        inputs = torch.randn(8, 64, generator=torch.Generator().manual_seed(step))
        model(inputs.to(next(model.parameters()).dtype)).float().square().mean().backward()
        rule.step()
        rule.zero_grad()


@pytest.mark.parametrize("name", HERE)
def test_state_is_what_the_table_says_and_comes_back_exactly(name: str, tmp_path: Path) -> None:
    card = optimizers.get(name)
    for precision in card.precisions:
        train = TrainSpec(optimizer=name, learning_rate=1e-2, momentum=0.9, precision=precision)
        dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
        whole, broken, again = (small().to(dtype) for _ in range(3))

        def build(model: nn.Module, train: TrainSpec = train) -> Any:
            return card.build([{"params": list(model.parameters()), "lr": 1e-2}], train)

        steps(whole, build(whole), 0, 6)
        rule = build(broken)
        steps(broken, rule, 0, 3)
        if name == "adamw8bit":
            assert rule.state[broken[0].weight]["state1"].dtype == torch.uint8
        tensors = [t for w in rule.state.values() for t in w.values() if torch.is_tensor(t)]
        held = sum(t.numel() * t.element_size() for t in tensors if t.numel() > 1)
        weights = list(broken.parameters())
        assert held == sum(card.state_bytes(tuple(w.shape), w.element_size(), 0.9) for w in weights)
        saved = checkpoint.save(tmp_path / precision, 3, broken, rule, {}, {})
        checkpoint.load_weights(saved, again)
        resumed = build(again)
        checkpoint.load_optimizer(saved, again, resumed)
        steps(again, resumed, 3, 6)
        moved = [not torch.equal(a, b) for a, b in zip(weights, whole.parameters(), strict=True)]
        assert all(moved)
        for weight, two in zip(whole.parameters(), again.parameters(), strict=True):
            assert torch.equal(weight, two), (name, precision)


@pytest.mark.parametrize("rule", ["adamw", "sgd"])
def test_the_update_inside_the_backward_pass_equals_the_one_after_it(
    work_here: Callable[..., RunDir], rule: str
) -> None:
    """A whole run each, the head tied to the embeddings, with checkpointed activations; the
    second is stopped and resumed on the way."""
    sections: dict[str, Any] = {
        "max_grad_norm": 0,
        "max_steps": 6,
        "save_steps": 3,
        "activation_checkpointing": "on",
        "momentum": 0.5 if rule == "sgd" else 0.0,
    }
    plain = work_here("full", train=sections | {"optimizer": rule})
    inside = work_here("full", train=sections | {"optimizer": f"{rule}_in_backward"})
    assert attempt_again(inside) == 0
    assert record_reader.last_event(inside, "plan")["resumed_at"] == 3
    for key in ("train/loss", "train/grad_norm", "train/learning_rate"):
        ours, theirs = (
            {record["step"]: record[key] for record in record_reader.metrics(run, "train")}
            for run in (plain, inside)
        )
        assert ours == pytest.approx(theirs, rel=1e-5 if key == "train/grad_norm" else 0), key
    from safetensors.torch import load_file

    ours, theirs = (load_file(run.artifact / "model.safetensors") for run in (plain, inside))
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


@pytest.mark.parametrize("name", ["adamw8bit", "adafactor"])
def test_it_trains_and_resumes_in_the_loop(work_here: Callable[..., RunDir], name: str) -> None:
    from safetensors.torch import load_file

    train = {"optimizer": name, "max_steps": 6, "save_steps": 4, "sample_steps": 0}
    whole, broken = (work_here("lora", train=train) for _ in range(2))
    losses = [record["train/loss"] for record in record_reader.metrics(whole, "train")]
    assert losses[-1] < losses[0]
    assert attempt_again(broken) == 0
    assert record_reader.last_event(broken, "plan")["resumed_at"] == 4
    ours, theirs = (
        load_file(run.artifact / "adapter_model.safetensors") for run in (whole, broken)
    )
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_what_a_rule_cannot_do_is_refused_with_the_reason(
    make_spec: Callable[..., dict[str, Any]],
) -> None:
    inside = {"optimizer": "sgd_in_backward", "gradient_accumulation_steps": 2}
    answer = check(make_spec("full", train=inside))
    found = {problem["field"]: problem["message"] for problem in answer["problems"]}
    assert set(found) == {"train.gradient_accumulation_steps", "train.max_grad_norm"}
    assert (
        "Set 1" in found["train.gradient_accumulation_steps"]
        and "Set 0" in found["train.max_grad_norm"]
    )
    free = {"optimizer": "sgd_in_backward", "max_grad_norm": 0}
    (problem,) = check(make_spec("adalora", train=free))["problems"]
    assert problem["field"] == "train.optimizer" and "scores" in problem["message"]
    if not torch.cuda.is_available():
        answer = check(make_spec("full", train={"optimizer": "paged_adamw8bit"}))
        (problem,) = answer["problems"]
        assert problem["field"] == "train.optimizer" and "no GPU here" in problem["message"]
    plain, small, none = (
        check(make_spec("full", train={"optimizer": name, "max_grad_norm": 0}))["estimate"]["bytes"]
        for name in ("adamw", "adamw8bit", "sgd_in_backward")
    )
    assert plain["optimizer"] == 2 * plain["weights"]
    assert 0.25 < small["optimizer"] / plain["weights"] < 0.7
    assert none["optimizer"] == 0 and none["gradients"] < plain["gradients"]


@pytest.mark.parametrize("name", HERE)
def test_every_rule_decays_weights_at_the_rate_and_share_that_are_given(name: str) -> None:
    """With gradients of nearly nothing, only the decay moves the weights: by rate x share of
    themselves where it is decoupled, and through the gradient in SGD, which is the same here."""
    from torch import nn

    rate, share = 1e-2, 0.5
    moved = {}
    for decay in (0.0, share):
        torch.manual_seed(0)
        layer = nn.Linear(128, 128, bias=False)
        with torch.no_grad():
            layer.weight.fill_(1.0)
        # an update inside the backward pass has no gradient to be cleared
        train = TrainSpec(optimizer=name, learning_rate=rate, weight_decay=decay)
        rule = optimizers.get(name).build([{"params": [layer.weight], "lr": rate}], train)
        (layer.weight.sum() * 0.0).backward()
        rule.step()
        moved[decay] = float(layer.weight.mean())
    assert moved[0.0] == pytest.approx(1.0, abs=1e-6), f"{name} moves nothing without a gradient."
    assert moved[share] == pytest.approx(1.0 - rate * share, abs=1e-4), f"{name} decays."


def test_momentum_is_sgds_and_goes_on_with_the_last_step() -> None:
    from torch import nn

    for name in ("sgd", "sgd_in_backward"):
        for momentum, way in ((0.0, 2.0), (0.9, 2.9)):
            layer = nn.Linear(1, 1, bias=False)
            with torch.no_grad():
                layer.weight.zero_()
            train = TrainSpec(optimizer=name, learning_rate=0.01, momentum=momentum)
            rule = optimizers.get(name).build([{"params": [layer.weight], "lr": 0.01}], train)
            for _ in range(2):
                (-layer.weight.sum()).backward()  # a gradient of one
                rule.step()
                rule.zero_grad()
            assert float(layer.weight) == pytest.approx(0.01 * way), (name, momentum)


def test_adafactor_steps_at_the_runs_own_rate_from_zero_on() -> None:
    """LoRA's B starts at zero; a step scaled by the size of the weight would not move it."""
    from torch import nn

    layer = nn.Linear(64, 64, bias=False)
    with torch.no_grad():
        layer.weight.zero_()
    train = TrainSpec(optimizer="adafactor", learning_rate=1e-2)
    rule = optimizers.get("adafactor").build([{"params": [layer.weight], "lr": 1e-2}], train)
    layer.weight.sum().backward()
    rule.step()
    assert float(layer.weight.abs().mean()) == pytest.approx(1e-2, rel=0.05)


@pytest.mark.parametrize(
    ("name", "shape", "size", "momentum", "expected"),
    [
        ("adamw", (100, 50), 4, 0.0, 2 * 4 * 5000),
        ("adamw", (100, 50), 2, 0.0, 2 * 2 * 5000),
        ("sgd", (100, 50), 4, 0.0, 0),
        ("sgd", (100, 50), 4, 0.9, 4 * 5000),
        ("adafactor", (100, 50), 4, 0.0, 4 * (100 + 50)),
        ("adafactor", (100,), 4, 0.0, 4 * 100),
        ("adafactor", (3, 100, 50), 4, 0.0, 4 * 3 * (100 + 50)),
        ("adamw8bit", (4095,), 4, 0.0, 8 * 4095),
    ],
)
def test_what_a_rule_remembers_of_a_tensor(
    name: str, shape: tuple[int, ...], size: int, momentum: float, expected: int
) -> None:
    assert optimizers.get(name).state_bytes(shape, size, momentum) == expected


def test_eight_bits_take_about_two_bytes_a_parameter_and_a_scale_for_256() -> None:
    matrix = optimizers.get("adamw8bit").state_bytes((4096, 4096), 4, 0.0) / 4096**2
    assert matrix == pytest.approx(2 + 2 * 4 / 256, rel=1e-3)


@pytest.mark.parametrize("name", ["adamw", "adamw8bit", "adafactor", "sgd", "adamw_in_backward"])
def test_the_lines_of_a_script_make_the_same_rule(name: str) -> None:
    """Over groups that have their rates and shares of decay, as the script makes them."""
    train = TrainSpec(optimizer=name, learning_rate=3e-3, momentum=0.7, weight_decay=0.2)

    def groups() -> list[dict[str, Any]]:
        return [{"params": list(small().parameters()), "lr": 3e-3, "weight_decay": 0.2}]

    lines = "\n".join(f"    {line}" for line in optimizers.get(name).script(train))
    names: dict[str, Any] = {"torch": torch, "LEARNING_RATE": 3e-3}
    exec(f"def make(groups):\n{lines}", names)
    ours, theirs = optimizers.get(name).build(groups(), train), names["make"](groups())
    if name == "adamw_in_backward":
        ours = optimizers.get("adamw").build(groups(), train)
    assert type(theirs) is type(ours)
    settings = [
        {key: value for key, value in rule.param_groups[0].items() if key != "params"}
        for rule in (ours, theirs)
    ]
    assert settings[0] == settings[1] and settings[0]["weight_decay"] == 0.2


@pytest.mark.parametrize(
    ("method", "adapters", "rule", "copies"),
    [
        ("lora", "bfloat16", "adamw", True),
        ("lora", "float32", "adamw", False),
        ("full", "bfloat16", "adamw", False),
        ("lora", "bfloat16", "sgd_in_backward", False),
    ],
)
def test_narrow_adapters_have_copies_where_there_is_a_step(
    method: str, adapters: str, rule: str, copies: bool
) -> None:
    from lab import methods

    train = TrainSpec(adapter_precision=adapters, optimizer=rule, max_grad_norm=0)
    assert optimizers.uses_master_weights(methods.get(method), train) is copies
