"""The support matrix is what trying gives: each "yes" trains as it should, each "no" is refused
with its reason, and is no idle one."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch

from lab import methods
from lab.data.batches import collate, packed_rows, single_rows
from lab.data.chat_template import TokenizedExample
from lab.methods import Context, Method
from lab.methods.parts import compatibility
from lab.methods.parts.compatibility import FEATURES, Unsupported
from lab.models import weights
from lab.models.catalog import ModelSource
from lab.spec import RunSpec
from lab.train.activation_checkpointing import checkpoint_activations
from lab.train.step import summed_loss
from tests.answers import check

ASKING = {
    "packing": {"data": {"packing": "on"}},
    "activation_checkpointing": {"train": {"activation_checkpointing": "on"}},
    "fused_loss": {"train": {"loss_implementation": "fused"}},
    "compile": {"train": {"compile": "on"}},
    "mixed_precision": {"train": {"precision": "mixed"}},
    "bfloat16": {"train": {"precision": "bfloat16"}},
    "bfloat16_adapters": {"train": {"adapter_precision": "bfloat16"}},
    "budget_of_seconds": {"train": {"max_seconds": 60.0}},
    "update_in_backward": {"train": {"optimizer": "adamw_in_backward"}},
}
TOKENS = [
    TokenizedExample(ids, ids)
    for ids in ([1, 11, 20, 23, 0], [1, 12, 21, 24, 27, 0], [1, 13, 22, 0])
]


@pytest.fixture
def build(tiny_models: dict[str, Any], tiny_tokenizer: Any) -> Callable[..., Any]:
    """A method on the tiny Llama: `build(method, dtype, adapter_precision)`, without dropout."""

    def make(method: Method, dtype: Any = torch.float32, adapters: str = "float32") -> Any:
        options = {"dropout": 0.0} if "dropout" in _fields(method) else {}
        value = {
            "method": {"name": method.name, **options},
            "train": {"adapter_precision": adapters},
        }
        spec = RunSpec.from_json(value)
        source = ModelSource("tiny", str(tiny_models["llama"]), local_only=True)
        base = weights.load_model(source, dtype, **method.load_kwargs(spec.method_config))
        torch.manual_seed(0)
        context = Context(spec, tiny_tokenizer)
        method.prepare(base, spec.method_config, context)
        model = method.apply(base, spec.method_config, context)
        method.set_total_steps(model, spec.method_config, 10)
        return model.train()

    return make


def _fields(method: Method) -> set[str]:
    return {field.name for field in dataclasses.fields(method.config)}  # type: ignore[arg-type]


def loss_and_gradients(
    model: Any, rows: Any, precision: str = "float32", loss: str = "fused"
) -> tuple[float, dict[str, torch.Tensor]]:
    """Summed loss over batches of `rows` and the gradients that they leave."""
    model.zero_grad()
    total = torch.zeros(())
    for row in rows:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            part = summed_loss(model, collate([row], pad=0), precision=precision, loss=loss)
        part.backward()
        total += part.detach()
    gradients = {
        name: weight.grad.clone()
        for name, weight in model.named_parameters()
        if weight.requires_grad and weight.grad is not None
    }
    return float(total), gradients


def is_same(one: Any, other: Any) -> bool:
    """Whether two results of `loss_and_gradients` agree to rounding."""
    return (
        abs(one[0] - other[0]) < 1e-3
        and one[1].keys() == other[1].keys()
        and all(torch.allclose(g, other[1][n], rtol=1e-3, atol=1e-4) for n, g in one[1].items())
    )


@pytest.mark.every_method
@pytest.mark.parametrize("name", methods.names())
def test_trying_gives_the_matrix(name: str, build: Callable[..., Any]) -> None:
    method = methods.get(name)
    single = single_rows(TOKENS)
    plain = loss_and_gradients(build(method), single, loss="plain")
    assert plain[1], "something trains"

    def holds(feature: str) -> bool:
        """Whether the feature gives the losses and gradients that it should."""
        if feature == "packing":
            return is_same(loss_and_gradients(build(method), packed_rows(TOKENS, 64)), plain)
        if feature == "fused_loss":
            return is_same(loss_and_gradients(build(method), single), plain)
        if feature == "activation_checkpointing":
            model = build(method)
            checkpoint_activations(model)
            return is_same(loss_and_gradients(model, single, loss="plain"), plain)
        if feature == "mixed_precision":
            mixed = loss_and_gradients(build(method), single, precision="mixed")
            return abs(mixed[0] - plain[0]) < 0.05 * plain[0] and mixed[1].keys() == plain[1].keys()
        adapters = "bfloat16" if feature == "bfloat16_adapters" else "float32"
        model = build(method, torch.bfloat16, adapters)
        types = {weight.dtype for weight in model.parameters() if weight.requires_grad}
        if method.saves_whole_model:
            adapters = "bfloat16"  # its trained parts are the base's own
        narrow = loss_and_gradients(model, single, precision="bfloat16")
        near = abs(narrow[0] - plain[0]) < 0.1 * plain[0]
        base_type = {torch.bfloat16} if method.trains_base_weights else set()
        own_type = getattr(torch, adapters)
        near = near and narrow[1].keys() == plain[1].keys()
        return near and own_type in types and types <= {own_type} | base_type

    for feature in FEATURES:
        untried = ("compile", "budget_of_seconds", "update_in_backward")
        if feature.key not in ASKING or feature.key in untried:
            continue  # a compiler takes minutes; a clock and an optimizer are not tried in a step
        try:
            found: bool | str = holds(feature.key)
        except (ValueError, RuntimeError, TypeError, IndexError) as error:
            found = False
            reason = f"{type(error).__name__}: {error}"
        else:
            reason = "wrong losses or gradients"
        answer = bool(getattr(method, feature.method_attribute))
        assert found == answer, (
            f"{name} x {feature.title}: says {answer}, trying gives {found} ({reason})"
        )


@pytest.mark.every_method
@pytest.mark.parametrize("name", methods.names())
def test_a_no_is_refused_with_its_reason_and_a_yes_is_not(name: str) -> None:
    method = methods.get(name)
    for feature in FEATURES:
        answer = getattr(method, feature.method_attribute)
        assert answer is True or (isinstance(answer, Unsupported) and answer.reason.endswith("."))
        if feature.key not in ASKING:
            continue
        settings = {
            "train": {"loss_implementation": "plain"},
            **ASKING[feature.key],
            "method": {"name": name},
        }
        spec = RunSpec.from_json(settings)
        refused = dict(compatibility.refusals(method, spec))
        assert (feature.spec_key in refused) is (not answer)
        if isinstance(answer, Unsupported):
            assert answer.reason in refused[feature.spec_key]


def test_all_refusals_come_at_once_from_the_planner(
    tiny_models: dict[str, Any], tiny_tokenizer: Any, chats: Any
) -> None:
    tiny_tokenizer.save_pretrained(tiny_models["gpt2"])
    spec = {
        "model": str(tiny_models["gpt2"]),
        "method": {"name": "prefix", "init": "text", "projection": True},
        "data": {"dataset": str(chats), "packing": "on", "max_length": 64},
        "train": {"activation_checkpointing": "on", "adapter_precision": "bfloat16"},
    }
    fields = {problem["field"] for problem in check(spec)["problems"]}
    assert fields == {
        "data.packing", "train.activation_checkpointing", "train.adapter_precision", "method.init",
    }  # fmt: skip
    for name in ("loha", "lokr", "oft"):
        spec = {
            "model": str(tiny_models["gpt2"]),
            "method": {"name": name},
            "data": {"dataset": str(chats), "max_length": 64},
        }
        problems = check(spec)["problems"]
        assert [problem["field"] for problem in problems] == ["method.target_modules"]
        assert "Conv1D" in problems[0]["message"]


@pytest.mark.every_method
def test_the_matrix_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    from lab import cli

    assert cli.main(["methods", "--matrix"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "activation checkpointing" in text and "key-value cache" in text
    assert cli.main(["methods", "--matrix", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["matrix"]
    assert [row["name"] for row in rows] == methods.names()
    assert all(set(row["cells"]) == {feature.key for feature in FEATURES} for row in rows)
