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
from lab.spec import RunSpec
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
        for key, value in (
            ("title", method.title), ("summary", method.summary), ("formula", method.formula),
            ("count", method.parameter_formula), ("explain", method.description),
            ("source", method.source), ("default_lr", method.default_lr),
        ):  # fmt: skip
            assert stored[key] == value, f"{method.name}: {key}"


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


def test_the_rates_of_auto_are_those_that_the_methods_were_tried_with() -> None:
    """A silent change of one of these changes every run of everybody who left its rate alone."""
    rates = {
        "full": 2e-5, "adalora": 1e-3, "bottleneck": 3e-4, "ia3": 1e-2, "ln_tuning": 2e-3,
        "loha": 1e-3, "lokr": 1e-3, "lora": 2e-4, "lora8bit": 2e-4, "lora_embeddings": 2e-4,
        "lora_prompt": 1e-3, "oft": 1e-3, "prefix": 1e-2, "progressive": 2e-4, "prompt": 3e-2,
        "ptuning": 3e-3, "qlora": 2e-4, "top_layers_lora": 2e-4, "trainable_tokens": 5e-3,
        "vera": 5e-3,
    }  # fmt: skip
    assert {name: methods.get(name).default_lr for name in rates} == rates


@pytest.mark.every_method
def test_who_cannot_have_what_no_step_shows() -> None:
    """What tests/methods/test_compatibility.py does not try."""
    refusing = {
        feature: {each.name for each in methods.all_methods() if not getattr(each, feature)}
        for feature in ("can_limit_time", "can_compile", "can_update_in_backward")
    }
    assert refusing == {
        "can_limit_time": {"adalora"},  # ranks fall step by step
        "can_compile": {"prefix"},  # each layer writes to another slot of the cache
        "can_update_in_backward": {"adalora"},  # scores are made from gradients after the step
    }


@pytest.mark.parametrize(
    ("kind", "options", "changed", "words"),
    [
        ("mamba2", {}, {"target_modules": ["in_proj"]}, "but out_proj"),
        ("mamba2", {"target_modules": ["in_proj"]}, {}, ""),
        ("mixtral", {}, {"dropout": 0.0}, "in place of 0.05"),
        ("mixtral", {"dropout": 0.1}, {}, ""),
        ("mixtral", {"target_modules": ["q_proj"]}, {}, ""),
    ],
)
def test_a_default_that_a_model_does_not_take_is_fitted_and_a_choice_is_not(
    kind: str, options: dict[str, Any], changed: dict[str, Any], words: str
) -> None:
    from transformers import AutoConfig

    from lab.models.empty_model import meta_model
    from tests.forecast.test_families import SHAPES

    model = meta_model(AutoConfig.for_model(kind, **SHAPES[kind]))
    method = methods.get("lora")
    changes, notes = method.fit_defaults(model, method.config(**options))
    assert changes == changed
    assert len(notes) == len(changed) and all(words in note for note in notes)


# names of options in earlier versions, under which runs on the disk have them
FORMER = {
    "adalora": {"warmup": "tinit_ratio", "settle": "tfinal_ratio", "targets": "target_modules"},
    "bottleneck": {"start": "init"},
    "ln_tuning": {"targets": "target_modules"},
    "loha": {"targets": "target_modules"},
    "lora": {
        "targets": "target_modules", "start": "init_lora_weights", "rslora": "use_rslora",
        "dora": "use_dora", "lr_ratio": "loraplus_lr_ratio", "train_also": "modules_to_save",
    },
    "lora8bit": {"start": "init_lora_weights", "lr_ratio": "loraplus_lr_ratio"},
    "lora_embeddings": {"base_rate": "base_lr_ratio"},
    "prefix": {"tokens": "num_virtual_tokens", "start": "init"},
    "progressive": {"least_gain": "min_delta", "base_rate": "base_lr_ratio"},
    "prompt": {"tokens": "num_virtual_tokens", "start": "init"},
    "ptuning": {"tokens": "num_virtual_tokens"},
    "qlora": {"start": "init_lora_weights", "levels": "quant_type", "compute": "compute_dtype"},
    "top_layers_lora": {"base_rate": "base_lr_ratio"},
    "vera": {"d_start": "d_initial", "targets": "target_modules"},
}  # fmt: skip


@pytest.mark.parametrize("name", FORMER)
def test_options_of_runs_of_an_earlier_lab_are_read(name: str) -> None:
    for former, now in FORMER[name].items():
        default = getattr(methods.get(name).config(), now)
        value = 2 * default if isinstance(default, float) else default or ["norm"]
        value = not default if isinstance(default, bool) else value
        problems: list[Any] = []
        spec = RunSpec.parse({"method": {"name": name, former: value}}, problems)
        assert problems == [] and spec.method[now] == value, former
