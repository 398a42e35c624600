"""Methods are known once, in one order; layers are named as PEFT names them."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from lab import methods
from lab.errors import LabError
from lab.methods.parts import patterns
from lab.methods.parts.target_modules import (
    LinearLayer,
    is_tied,
    module_names,
    target_layers,
    weights_of,
)
from tests.methods import tiny


def test_two_methods_of_one_name_are_refused() -> None:
    before = methods.get("lora")
    with pytest.raises(ValueError, match="two methods are named lora"):

        @methods.register("lora")
        class Another(methods.Method):
            pass

    assert methods.get("lora") is before


@pytest.mark.every_method
def test_full_comes_first_and_the_others_by_name() -> None:
    names = methods.names()
    assert names[0] == "full" and names[1:] == sorted(names[1:]) and len(set(names)) == len(names)
    with pytest.raises(LabError, match="Choose one of: full, adalora"):
        methods.get("nothing")


@pytest.mark.every_method
def test_what_a_page_is_told_of_a_method_is_what_it_is() -> None:
    for method in methods.all_methods():
        stored = method.to_json()
        assert [option["name"] for option in stored["options"]] == [
            field.name
            for field in dataclasses.fields(method.config)  # type: ignore[arg-type]
        ]
        assert set(stored["reasons"]) == {key for key, yes in stored["supports"].items() if not yes}
        assert all(len(reason) > 10 for reason in stored["reasons"].values())


@pytest.mark.parametrize(
    ("target", "name", "is_meant"),
    [
        ("q_proj", "model.layers.0.self_attn.q_proj", True),
        ("q_proj", "q_proj", True),
        ("proj", "model.layers.0.self_attn.q_proj", False),
        ("self_attn.q_proj", "model.layers.0.self_attn.q_proj", True),
        (r"re:.*\.[qk]_proj", "model.layers.0.self_attn.q_proj", True),
        (r"re:[qk]_proj", "model.layers.0.self_attn.q_proj", False),
        # of a run of an older lab, without the sign
        (r".*\.[qk]_proj", "model.layers.0.self_attn.q_proj", True),
    ],
)
def test_targets_are_whole_last_parts_or_whole_patterns(
    target: str, name: str, is_meant: bool
) -> None:
    assert bool(patterns.named(target, [name])) is is_meant


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("model.layers.11.mlp.up_proj", 11), ("transformer.h.0.attn.c_attn", 0),
        ("lm_head", None), ("model.block2.dense", None), ("model.layers.3", 3),
    ],
)  # fmt: skip
def test_a_layer_knows_its_number(name: str, number: int | None) -> None:
    assert LinearLayer(name, 2, 2).layer_index == number


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_all_linear_is_all_but_the_head(kind: str) -> None:
    model = tiny.make_empty(kind)
    layers = target_layers(model, "all-linear")
    each = {"llama": 7, "qwen3": 7, "gpt2": 4, "neox": 4}[kind]
    assert len(layers) == 2 * each and all(layer.layer_index is not None for layer in layers)
    for layer in layers:
        shape = tuple(model.get_submodule(layer.name).weight.shape)
        assert shape == (
            (layer.d_in, layer.d_out) if layer.is_conv1d else (layer.d_out, layer.d_in)
        )
    assert is_tied(model) is (kind in ("qwen3", "gpt2"))


def test_tied_weights_are_counted_once() -> None:
    model: Any = tiny.make_empty("qwen3")
    names, unknown = module_names(model, ["embeddings", "head", "q_proj", "nothing"])
    assert unknown == ["nothing"] and len(names) == 4
    items = list(weights_of(model, names))
    assert len(items) == 3 and len({id(row) for row in items}) == 3


@pytest.mark.every_method
def test_a_lighter_method_is_there_and_what_a_method_says_of_itself_is_not_inherited() -> None:
    by_name = {method.name: method for method in methods.all_methods()}
    for method in by_name.values():
        assert method.lighter_method in {"", *by_name} - {method.name}, (
            f"{method.name} offers '{method.lighter_method}' in its place, which is no other method"
        )
    standard = [method.name for method in methods.standard_methods()]
    assert standard == ["full", "lora", "qlora"], "the methods that rules of thumb speak of"
    assert by_name["full"].lighter_method == "lora" and by_name["qlora"].lighter_method == ""
