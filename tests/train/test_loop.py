"""One step against plain torch, and which sequences each step takes."""

from __future__ import annotations

import copy
import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from lab.data.batches import TokenSequence, TrainingOrder, collate
from lab.spec_sections import TrainSpec
from lab.train.budget import BudgetUsed, TrainingBudget
from lab.train.flops import FlopCosts
from lab.train.loop import StepConfig, TrainingLoop, step
from lab.train.optimizer import add_new_parameters
from lab.train.step_batches import StepBatches
from tests.methods import tiny

UNEQUAL = [
    TokenSequence(
        [1, 10 + size, *range(20, 20 + size)], [-100, -100, *range(20, 20 + size)], (size + 2,)
    )
    for size in (3, 11, 5, 8)
]
RATE = 0.05


@pytest.fixture(scope="module")
def base() -> Any:
    return tiny.make_model("llama")


@pytest.fixture(scope="module")
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


def stepped(
    accelerator: Accelerator, base: Any, parts: list[list[TokenSequence]], **options: Any
) -> tuple[dict[str, torch.Tensor], Any]:
    """Weights after one step of plain SGD over micro-batches, and the step's result."""
    model = copy.deepcopy(base).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    multiplier = options.pop("lr_multiplier", 1.0)
    config = StepConfig("float32", "fused", **{"max_grad_norm": 0.0, **options})
    batches = [collate(rows, pad=0) for rows in parts]
    result = step(accelerator, model, optimizer, batches, config, 1, multiplier)
    return {name: weight.detach() for name, weight in model.named_parameters()}, result


def by_hand(base: Any, penalty: float = 0.0) -> tuple[dict[str, torch.Tensor], float, float]:
    """The same step with torch's own loss over all sequences: weights, loss, gradient norm."""
    model = copy.deepcopy(base)
    total, count = torch.zeros(()), 0
    for row in UNEQUAL:
        logits = model(input_ids=torch.tensor([row.ids])).logits[0, :-1]
        targets = torch.tensor(row.labels[1:])
        total = total + torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
        count += int((targets != -100).sum())
    loss = total / count
    (loss + penalty * model.get_input_embeddings().weight.sum()).backward()
    norm = torch.stack([weight.grad.norm() for weight in model.parameters()]).norm()
    after = {name: w.detach() - RATE * w.grad for name, w in model.named_parameters()}
    return after, loss.item(), norm.item()


def assert_equal(weights: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    for name, weight in weights.items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("cut", [[4], [2, 2], [1, 3], [1, 1, 1, 1]])
def test_a_step_is_the_mean_over_all_tokens_however_they_are_cut(
    accelerator: Accelerator, base: Any, cut: list[int]
) -> None:
    rows = iter(UNEQUAL)
    parts = [[next(rows) for _ in range(size)] for size in cut]
    weights, result = stepped(accelerator, base, parts)
    expected, loss, norm = by_hand(base)
    assert float(result.losses.sum()) == pytest.approx(loss, rel=1e-5)
    assert float(result.grad_norm) == pytest.approx(norm, rel=1e-4)
    assert_equal(weights, expected)


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_a_penalty_counts_once_a_step_and_is_not_recorded(
    accelerator: Accelerator, base: Any, parts: int
) -> None:
    def penalty(model: Any) -> torch.Tensor:
        return 0.3 * model.get_input_embeddings().weight.sum()

    size = len(UNEQUAL) // parts
    cut = [UNEQUAL[first : first + size] for first in range(0, len(UNEQUAL), size)]
    weights, result = stepped(accelerator, base, cut, penalty=penalty)
    expected, loss, _ = by_hand(base, penalty=0.3)
    assert float(result.losses.sum()) == pytest.approx(loss, rel=1e-5), "the penalty is left out"
    assert_equal(weights, expected)


def test_gradients_are_clipped_and_their_norm_is_that_before(
    accelerator: Accelerator, base: Any
) -> None:
    free, _ = stepped(accelerator, base, [UNEQUAL])
    clipped, result = stepped(accelerator, base, [UNEQUAL], max_grad_norm=0.01)
    _, _, norm = by_hand(base)
    assert norm > 0.01 and float(result.grad_norm) == pytest.approx(norm, rel=1e-4)
    before = dict(base.named_parameters())
    for name, weight in clipped.items():
        moved, whole = weight - before[name], free[name] - before[name]
        torch.testing.assert_close(moved, whole * 0.01 / norm, rtol=2e-3, atol=1e-7)


def test_the_multiplier_scales_the_peak_rate_and_does_not_pile_up(
    accelerator: Accelerator, base: Any
) -> None:
    model = copy.deepcopy(base)
    first, *others = model.parameters()
    optimizer = torch.optim.SGD([{"params": [first], "lr": 0.4}, {"params": others, "lr": 0.1}])
    config = StepConfig("float32", "fused")
    for number, multiplier in enumerate((0.5, 0.5, 0.25), 1):
        step(accelerator, model, optimizer, [collate(UNEQUAL, 0)], config, number, multiplier)
        rates = [group["lr"] for group in optimizer.param_groups]
        assert rates == [0.4 * multiplier, 0.1 * multiplier], "each group has its own peak"


def test_hooks_are_called_in_their_phase(accelerator: Accelerator, base: Any) -> None:
    model, calls = copy.deepcopy(base), []

    def on_optimizer_step(tuned: Any, number: int) -> None:
        assert tuned is model and next(tuned.parameters()).grad is not None, "gradients exist still"
        calls.append(f"after step {number}")

    config = StepConfig("float32", "fused", on_optimizer_step=on_optimizer_step)
    batches = [collate([row], 0) for row in UNEQUAL[:2]]
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    step(accelerator, model, optimizer, batches, config, 7, end_phase=calls.append)
    assert calls == [*["forward", "backward"] * 2, "after step 7", "optimizer"]
    assert all(weight.grad is None for weight in model.parameters())


# -- which sequences ----------------------------------------------------------------------

ROWS = [TokenSequence([number] * 4, [-100] + [number] * 3, (4,), (number,)) for number in range(10)]


def step_batches(rows: int = 14, **used: int) -> StepBatches:
    plan = TrainingBudget(-(-rows // 4), rows, {"step": 4.0})
    return StepBatches(
        TrainingOrder(ROWS, seed=3), plan, BudgetUsed(**used), FlopCosts(2.0, 1.0, 0.0), 2, 2, 0
    )


def sources(micro_batches: list[list[TokenSequence]]) -> list[list[int]]:
    return [[row.sources[0] for row in rows] for rows in micro_batches]


def test_steps_follow_the_stream_and_the_last_one_is_smaller() -> None:
    batches, stream = step_batches(), TrainingOrder(ROWS, seed=3)
    order = [stream[index].sources[0] for index in range(14)]
    assert sources(batches.sequences(1)) == [order[0:2], order[2:4]]
    assert sources(batches.sequences(3)) == [order[8:10], order[10:12]], "over the end of an epoch"
    assert sources(batches.sequences(4)) == [order[12:14]], "one micro-batch is left"
    assert sources(step_batches(13).sequences(4)) == [order[12:13]]
    assert sources(batches.sequences(1)) == [order[0:2], order[2:4]], "asked again, it is the same"


def test_what_a_step_uses_is_added_up() -> None:
    batches = step_batches(step=2, tokens=100, loss_tokens=50, flops=7)
    batches.count(3, batches.sequences(3))
    assert batches.used == BudgetUsed(3, 100 + 4 * 4, 50 + 4 * 3, 0.0, 7 + 4 * (2 * 4 + 3))


def test_processes_share_the_micro_batches_of_a_step() -> None:
    micro_batches = step_batches(20).sequences(1) + step_batches(20).sequences(2)[:1]
    assert len(micro_batches) == 3
    cpu = torch.device("cpu")
    shares = [
        step_batches().tensors(
            micro_batches, SimpleNamespace(process_index=index, num_processes=2, device=cpu)
        )
        for index in range(2)
    ]
    assert [len(share) for share in shares] == [2, 2], "each takes part in every backward pass"
    real = [shares[0][0], shares[1][0], shares[0][1]]
    for batch, rows in zip(real, micro_batches, strict=True):
        assert torch.equal(batch["input_ids"], torch.tensor([row.ids for row in rows]))
    assert shares[1][1]["targets"].numel() == 0, "the one that is made up does not count"


def test_rows_for_compiled_layers_have_one_length() -> None:
    """Each further length would be compiled anew."""
    batches = dataclasses.replace(step_batches(), length=9)
    here: Any = SimpleNamespace(process_index=0, num_processes=1, device=torch.device("cpu"))
    shapes = [batch["input_ids"].shape for batch in batches.tensors(batches.sequences(1), here)]
    assert shapes == [(2, 9), (2, 9)]


def test_the_loop_stops_at_the_budget_or_where_a_callback_says() -> None:
    class Watch:
        def __init__(self, last: int) -> None:
            self.last, self.calls = last, []

        def on_train_begin(self, loop: TrainingLoop) -> None:
            self.calls.append("begin")
            assert loop.model.training, "dropout is on"

        def on_step_end(self, loop: TrainingLoop, result: Any) -> None:
            self.calls.append(loop.batches.used.step)
            loop.should_stop = loop.batches.used.step == self.last

        def on_train_end(self, loop: TrainingLoop) -> None:
            self.calls.append("end")

    for last, expected in ((9, [1, 2, 3, 4]), (2, [1, 2])):
        model, watch = tiny.make_model("gpt2"), Watch(last)
        optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
        train, config = TrainSpec(learning_rate=RATE), StepConfig("float32", "fused")
        loop = TrainingLoop(
            Accelerator(cpu=True), model, optimizer, train, config, step_batches(), [watch]
        )
        loop.run()
        assert watch.calls == ["begin", *expected, "end"]


def test_dropout_is_drawn_by_the_seed_of_the_run() -> None:
    losses = []

    class Keep:
        def on_train_begin(self, loop: TrainingLoop) -> None: ...
        def on_train_end(self, loop: TrainingLoop) -> None: ...
        def on_step_end(self, loop: TrainingLoop, result: Any) -> None:
            losses.append(float(result.losses.sum()))
            loop.should_stop = True

    for seed in (1, 1, 2):
        model, train = tiny.make_model("gpt2"), TrainSpec(learning_rate=RATE, seed=seed)
        model.transformer.drop.p = 0.5
        optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
        config, cpu = StepConfig("float32", "fused"), Accelerator(cpu=True)
        TrainingLoop(cpu, model, optimizer, train, config, step_batches(), [Keep()]).run()
    assert losses[0] == losses[1] != losses[2], "the rows and weights are the same"


def test_parameters_that_begin_to_train_join_at_the_present_rate() -> None:
    first, second = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    optimizer = torch.optim.SGD([{"params": [first], "lr": 0.2}])
    groups = [{"params": [first], "lr": 0.2}, {"params": [second], "lr": 0.6}]
    method: Any = SimpleNamespace(param_groups=lambda model, config, rate: groups)
    spec: Any = SimpleNamespace(
        method_config=None, train=SimpleNamespace(learning_rate=0.2, weight_decay=0.0)
    )
    assert add_new_parameters(optimizer, None, method, spec, 0.5) == 1
    assert add_new_parameters(optimizer, None, method, spec, 0.5) == 0, "all are known by now"
    added = optimizer.param_groups[1]
    assert added["params"] == [second] and (added["lr"], added["initial_lr"]) == (0.3, 0.6)
