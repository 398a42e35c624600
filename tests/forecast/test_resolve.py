"""Each `auto` that needs no figure, by method and device."""

from __future__ import annotations

from typing import Any

import pytest

from lab import methods
from lab.forecast.resolve import DECIDED_BY_FORECAST, resolve
from lab.spec import RunSpec


def resolved(method: Any = "lora", has_bf16: bool = True, **sections: Any) -> RunSpec:
    return resolve(RunSpec.from_json({"method": method, **sections}), has_bf16).spec


@pytest.mark.parametrize(
    ("method", "data", "packing"),
    [
        ("lora", {}, "on"), ("lora", {"group_by_length": "on"}, "off"), ("prefix", {}, "off"),
        ("lora", {"packing": "off"}, "off"), ("prefix", {"packing": "on"}, "on"),
    ],
)  # fmt: skip
def test_rows_are_packed_where_the_method_can_and_they_are_not_grouped(
    method: str, data: dict[str, Any], packing: str
) -> None:
    assert resolved(method, data=data).data.packing == packing


@pytest.mark.parametrize(
    ("method", "has_bf16", "train", "precision", "adapters"),
    [
        ("lora", True, {}, "bfloat16", "bfloat16"),
        ("lora", False, {}, "float32", "float32"),
        ("lora", True, {"precision": "float32"}, "float32", "float32"),
        ("lora", True, {"precision": "mixed"}, "mixed", "float32"),
        ("lora", True, {"adapter_precision": "float32"}, "bfloat16", "float32"),
        ("lora", False, {"precision": "bfloat16"}, "bfloat16", "bfloat16"),
        ("lora", True, {"optimizer": "sgd_in_backward"}, "bfloat16", "float32"),
        ("full", True, {}, "bfloat16", "float32"),
    ],
)
def test_sixteen_bits_are_taken_where_the_device_multiplies_in_them(
    method: str, has_bf16: bool, train: dict[str, Any], precision: str, adapters: str
) -> None:
    """Adapters have them too, where the optimizer keeps the bits that they lack."""
    spec = resolved(method, has_bf16, train=train)
    assert (spec.train.precision, spec.train.adapter_precision) == (precision, adapters)


def test_the_rate_and_the_name_are_the_methods_unless_they_are_given() -> None:
    for method in ("lora", "full", "prompt"):
        assert resolved(method).train.learning_rate == methods.get(method).default_lr
        assert resolved(method, train={"learning_rate": 3e-5}).train.learning_rate == 3e-5
        assert resolved(method).name == methods.get(method).title


def test_what_a_forecast_decides_is_off_and_open_until_then() -> None:
    answer = resolve(RunSpec.from_json({}), True)
    assert answer.is_open == set(DECIDED_BY_FORECAST) == {"activation_checkpointing", "compile"}
    for name in DECIDED_BY_FORECAST:
        assert getattr(answer.spec.train, name) == "off"
        given = resolve(RunSpec.from_json({"train": {name: "on"}}), True)
        assert name not in given.is_open and getattr(given.spec.train, name) == "on"
