"""A run does what a plain loop over the same rows does, number by number.

The loop here is written out with torch and transformers alone: whole logits, cross-entropy,
torch.optim, one division by the tokens of the step. It knows nothing of the worker.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lab.atomic_files import read_object
from lab.data import prepare
from lab.data.batches import TokenSequence, TrainingOrder
from lab.paths import RunDir
from lab.runs import record_reader
from lab.spec import RunSpec
from tests.conftest import attempt_again, run_here

Spec = dict[str, Any]


@dataclass
class Course:
    """What a loop saw at each step."""

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    evals: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    counted: list[int] = field(default_factory=list)


def spec_of(run: RunDir) -> RunSpec:
    return RunSpec.from_stored(read_object(run.spec) or {})


def base(folder: Path, kind: torch.dtype = torch.float32) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=kind)


def summed(model: Any, rows: list[TokenSequence]) -> torch.Tensor:
    """The summed loss of rows, each alone, without padding."""
    total = torch.zeros(())
    for row in rows:
        logits = model(input_ids=torch.tensor([row.ids]), use_cache=False).logits[0, :-1]
        total = total + torch.nn.functional.cross_entropy(
            logits, torch.tensor(row.labels[1:]), ignore_index=-100, reduction="sum"
        )
    return total


def mean(model: Any, rows: Any) -> float:
    was_training = model.training
    model.eval()
    with torch.no_grad():
        total = float(summed(model, list(rows)))
    model.train(was_training)
    return total / sum(row.counted for row in rows)


def rows_of(run: RunDir, tokenizer: Any) -> tuple[prepare.PreparedData, TrainingOrder]:
    spec = spec_of(run)
    data = prepare.prepare(spec, tokenizer)
    return data, TrainingOrder(data.train, spec.train.seed)


def plain_loop(
    model: Any, stream: TrainingOrder, held_out: Any, rates: list[float], per_step: int, rows: int,
    *, optimizer: torch.optim.Optimizer, clip: float, evaluate_every: int,
) -> Course:  # fmt: skip
    course = Course()
    model.train()
    for step, rate in enumerate(rates):
        batch = [
            stream[place] for place in range(step * per_step, min(rows, (step + 1) * per_step))
        ]
        counted = sum(row.counted for row in batch)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        loss = summed(model, batch) / counted
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip or math.inf)
        optimizer.step()
        course.losses.append(loss.item())
        course.norms.append(float(norm))
        course.tokens.append(sum(row.tokens for row in batch))
        course.counted.append(counted)
        if (step + 1) % evaluate_every == 0 or step + 1 == len(rates):
            course.evals.append(mean(model, held_out))
    return course


def cumulative(values: list[int]) -> list[int]:
    return [sum(values[: place + 1]) for place in range(len(values))]


def again(run: RunDir) -> None:
    """A second attempt, whose records supersede those of the first."""
    (run.attempts / "1").mkdir(parents=True)
    assert attempt_again(run) == 0


def test_a_full_run_is_the_plain_loop(
    small_spec: Callable[..., Spec], small_model: Path, small_tokenizer: Any
) -> None:
    """Nineteen rows, four a step: the last step has three. Clipped, decayed, with a warm-up; and
    once more, resumed."""
    train = {
        "batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": None, "epochs": 1.0,
        "seed": 5, "learning_rate": 4e-3, "weight_decay": 0.1, "max_grad_norm": 0.4,
        "lr_scheduler_type": "linear",
        "warmup_ratio": 0.4, "eval_steps": 2, "save_steps": 2, "sample_steps": 0,
    }  # fmt: skip
    run = run_here(small_spec("full", train=train))
    data, stream = rows_of(run, small_tokenizer)
    assert (len(data.train), len(data.held_out)) == (19, 5)
    model = base(small_model)
    # the middles of five steps: a rise over the first two, then down to the end
    rates = [4e-3 * share for share in (0.25, 0.75, 2.5 / 3, 1.5 / 3, 0.5 / 3)]
    groups = [
        {"params": [w for w in model.parameters() if w.ndim > 1], "weight_decay": 0.1},
        {"params": [w for w in model.parameters() if w.ndim < 2], "weight_decay": 0.0},
    ]
    course = plain_loop(
        model, stream, data.held_out, rates, 4, 19, clip=0.4, evaluate_every=2,
        optimizer=torch.optim.AdamW(groups),
    )  # fmt: skip
    assert max(course.norms) > 0.4, "something is clipped"
    begun = base(small_model)
    base_loss = mean(begun, data.held_out)
    is_the_loop(run, course, rates, data.held_out, base_loss, begun, model)
    again(run)
    assert record_reader.last_event(run, "plan")["resumed_at"] == 4
    is_the_loop(run, course, rates, data.held_out, base_loss, begun, model)


def is_the_loop(
    run: RunDir, course: Course, rates: list[float], held_out: Any, base_loss: float, begun: Any,
    model: Any,
) -> None:  # fmt: skip
    """The records, the result and the summary of `run` say what the plain loop saw."""
    records = record_reader.metrics(run, "train")
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5]
    assert [record["train/loss"] for record in records] == pytest.approx(course.losses, rel=1e-4)
    assert [record["train/grad_norm"] for record in records] == pytest.approx(
        course.norms, rel=1e-3
    )
    assert [record["train/learning_rate"] for record in records] == pytest.approx(rates)
    assert [record["tokens"] for record in records] == cumulative(course.tokens)
    assert [record["loss_tokens"] for record in records] == cumulative(course.counted)
    evals = [record for record in record_reader.metrics(run, "eval") if record.get("of") != "base"]
    assert [record["step"] for record in evals] == [2, 4, 5]
    assert [record["eval/loss"] for record in evals] == pytest.approx(course.evals, rel=1e-4)
    assert {record["eval/loss_tokens"] for record in evals} == {sum(r.counted for r in held_out)}
    assert record_reader.base_loss(run) == pytest.approx(base_loss, rel=1e-4)

    result = load_file(run.artifact / "model.safetensors")
    trained = dict(model.named_parameters())
    untrained = dict(begun.named_parameters())
    for name, weight in result.items():
        moved = float((weight - untrained[name].detach()).abs().max())
        far = float((weight - trained[name].detach()).abs().max())
        assert far < 0.02 * moved, f"{name} ends elsewhere than in the plain loop"
    summary = (read_object(run.result) or {})["summary"]
    count = sum(weight.numel() for weight in model.parameters())
    assert (summary["parameters"], summary["trainable"]) == (count, count)
    assert (summary["planned_steps"], summary["step"]) == (5, 5)
    assert summary["tokens"] == sum(course.tokens)


def test_every_term_of_adaloras_loss_counts_once_a_step(
    small_spec: Callable[..., Spec], small_model: Path, small_tokenizer: Any
) -> None:
    """The penalty belongs to the step, not to each of the batches that it is made of: two batches
    of two give the weights that one batch of four gives."""
    train = {
        "max_steps": 4, "sample_steps": 0, "eval_steps": 0, "save_steps": 0, "max_grad_norm": 0,
        "optimizer": "sgd", "learning_rate": 0.5, "lr_scheduler_type": "constant",
        "warmup_ratio": 0.0,
    }  # fmt: skip
    # without dropout, and with nothing pruned: then only the penalty can differ
    method = {"name": "adalora", "dropout": 0.0, "orthogonality": 1.0, "rank": 4, "target_rank": 3,
              "tinit_ratio": 0.9, "tfinal_ratio": 0.0}  # fmt: skip
    runs = []
    for sizes in ({"batch_size": 4}, {"batch_size": 2, "gradient_accumulation_steps": 2}):
        runs.append(run_here(small_spec(method, train=train | sizes)))
    without = run_here(
        small_spec(method | {"orthogonality": 0.0}, train=train | {"batch_size": 4, "max_steps": 1})
    )
    norms, losses = (
        [[record[key] for record in record_reader.metrics(run, "train")] for run in runs]
        for key in ("train/grad_norm", "train/loss")
    )
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    (alone,) = record_reader.metrics(without, "train")
    assert norms[0][0] > 1.05 * alone["train/grad_norm"], "the penalty has a gradient of its own"
    stream = rows_of(runs[0], small_tokenizer)[1]
    first = mean(base(small_model), [stream[place] for place in range(4)])
    assert losses[0][0] == pytest.approx(first, rel=1e-5), "the recorded loss has no penalty in it"
    ours, theirs = (load_file(run.artifact / "adapter_model.safetensors") for run in runs)
    for name, weight in ours.items():
        assert torch.allclose(weight, theirs[name], atol=1e-5), name


@pytest.fixture(scope="module")
def grown(
    small_spec: Callable[..., Spec], tmp_path_factory: pytest.TempPathFactory
) -> tuple[RunDir, Spec]:
    """A run that opens its top layer after the second step and the other after the fourth."""
    from tests.conftest import SHARED_MODELS

    train = {
        "max_steps": 5, "batch_size": 2, "optimizer": "sgd", "learning_rate": 0.1,
        "warmup_ratio": 0.0, "lr_scheduler_type": "linear", "max_grad_norm": 0,
        "eval_steps": 0, "save_steps": 3,
        "sample_steps": 0, "keep_last": 9,
    }  # fmt: skip
    method = {"name": "progressive", "trigger": "steps", "every": 2, "rank": 4, "alpha": 8.0,
              "dropout": 0.0, "base_lr_ratio": 0.5}  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAB_HOME", str(tmp_path_factory.mktemp("grown") / "home"))
        patch.setenv("LAB_MODELS", str(SHARED_MODELS))
        return run_here(small_spec(method, train=train)), method


def test_opened_layers_learn_at_their_own_rate_on_the_same_schedule(
    grown: tuple[RunDir, Spec], small_model: Path, small_tokenizer: Any
) -> None:
    run, _ = grown
    stream = rows_of(run, small_tokenizer)[1]
    model = base(small_model)
    adapter = {
        name.removeprefix("base_model.model."): weight
        for name, weight in load_file(run.artifact / "lab_adapter_model.safetensors").items()
    }
    import peft
    from transformers import set_seed

    set_seed(0)  # the seed of the run, from which PEFT draws A
    linear = [name for name, part in model.named_modules() if isinstance(part, torch.nn.Linear)]
    targets = [name for name in linear if name != "lm_head"]
    model = peft.get_peft_model(
        model,
        peft.LoraConfig(
            r=4, lora_alpha=8, lora_dropout=0.0, target_modules=targets, task_type="CAUSAL_LM"
        ),
    )
    model.train()
    opened: list[str] = []
    losses = []
    for step in range(5):
        rows = [stream[place] for place in range(2 * step, 2 * step + 2)]
        model.zero_grad()
        loss = summed(model, rows) / sum(row.counted for row in rows)
        loss.backward()
        losses.append(loss.item())
        rate = 0.1 * (1 - (step + 0.5) / 5)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if weight.grad is None:
                    continue
                share = 1.0 if ".lora_" in name else 0.5
                weight -= share * rate * weight.grad
        if (step + 1) % 2 == 0:
            opened.append(f".layers.{1 - len(opened)}.")
            for name, weight in model.named_parameters():
                if any(part in name for part in opened):
                    weight.requires_grad_(True)
    records = record_reader.metrics(run, "train")
    assert [record["train/loss"] for record in records] == pytest.approx(losses, rel=1e-4)
    events = record_reader.events(run, "unfrozen")
    assert [event["step"] for event in events] == [2, 4]
    trained = dict(model.named_parameters())
    for name, weight in adapter.items():
        inside = f"base_model.model.{name}".replace(".weight", ".default.weight")
        assert torch.allclose(weight, trained[inside], atol=2e-5), name
    begun = dict(base(small_model).named_parameters())
    results = load_file(run.artifact / "base_weights.safetensors")
    assert any(".layers.0." in name for name in results)
    for name, weight in results.items():
        places = [f"base_model.model.{name}"]
        places.append(places[0].replace(".weight", ".base_layer.weight"))
        (own,) = [trained[place] for place in places if place in trained]
        moved = float((own.detach() - begun[name]).abs().max())
        assert float((weight - own).abs().max()) <= 0.02 * moved + 1e-9, name


def test_opened_layers_cost_more_operations_from_then_on(grown: tuple[RunDir, Spec]) -> None:
    """The gradient of each opened weight: two operations a token."""
    run, _ = grown
    records = [{"tokens": 0, "loss_tokens": 0, "flops": 0.0}, *record_reader.metrics(run, "train")]
    opened = 2 * (32 * 32 + 32 * 16) + 3 * 32 * 64  # matrices of one layer of the tiny model
    for place, layers in ((2, 0), (3, 1), (4, 1), (5, 2)):
        before, now = records[place - 1], records[place]
        tokens = now["tokens"] - before["tokens"]
        counted = now["loss_tokens"] - before["loss_tokens"]
        lora = 2 * 4 * 2 * (2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 64)) / 2
        frozen = 2 * opened
        head = 4 * counted * 32 * 96
        linear = tokens * (4 * frozen + 6 * lora + 2 * layers * opened)
        attention = now["flops"] - before["flops"] - head - linear
        assert 0 <= attention <= 12 * 2 * 32 * tokens * 64, f"operations of step {place}"


def test_a_resumed_growing_run_counts_as_one_that_was_never_interrupted(
    grown: tuple[RunDir, Spec],
) -> None:
    run, _ = grown
    before = [
        (record["step"], record["tokens"], record["flops"])
        for record in record_reader.metrics(run, "train")
    ]
    again(run)
    assert record_reader.last_event(run, "plan")["resumed_at"] == 3
    after = [
        (record["step"], record["tokens"], record["flops"])
        for record in record_reader.metrics(run, "train")
    ]
    assert after == before


@pytest.mark.parametrize(
    "settings",
    [{"precision": "mixed"}, {"precision": "bfloat16", "adapter_precision": "float32"}],
)
def test_a_precision_is_what_the_numbers_are_computed_in(
    small_spec: Callable[..., Spec], small_model: Path, small_tokenizer: Any, settings: Spec
) -> None:
    """The first loss, before anything has learned: torch's own autocast gives the same to the
    bit or nearly, float32 another."""
    train = {"max_steps": 1, "batch_size": 1, "eval_steps": 0, "sample_steps": 0, **settings}
    spec = small_spec("full", data={"eval_fraction": 0.0}, train=train)
    run = run_here(spec)
    row = rows_of(run, small_tokenizer)[1][0]
    model = base(small_model)
    exact = float(summed(model, [row])) / row.counted
    if settings["precision"] == "bfloat16":
        model = base(small_model, torch.bfloat16)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = float(summed(model, [row])) / row.counted
    (record,) = record_reader.metrics(run, "train")
    assert abs(record["train/loss"] - rounded) < 0.2 * abs(exact - rounded) + 1e-6
    kinds = {tensor.dtype for tensor in load_file(run.artifact / "model.safetensors").values()}
    wide = settings["precision"] == "mixed"
    assert kinds == {torch.float32 if wide else torch.bfloat16}
