"""Names of layers as people write them: one, several with commas, a list, or a marked pattern."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from lab import methods, spec
from lab.methods import Context
from lab.methods.parts.target_modules import target_layers
from lab.spec import RunSpec
from lab.ui import form
from tests.methods import tiny

NAMED = [
    (method.name, field.name)
    for method in methods.all_methods()
    for field in dataclasses.fields(method.config)  # type: ignore[arg-type]
    if field.metadata.get("names")
]
# two names that each field accepts on a tiny Llama, and a pattern of which it means both
KNOWN = {
    ("full", "freeze"): (["norms", "q_proj"], None),
    ("ln_tuning", "target_modules"): (
        ["input_layernorm", "post_attention_layernorm"],
        r"re:model\.layers\.\d+\.(input|post_attention)_layernorm",
    ),
    ("ia3", "feed_forward"): (["up_proj", "down_proj"], r"re:.*(up|down)_proj"),
}
DEFAULT_KNOWN = (["q_proj", "k_proj"], r"re:.*\.[qk]_proj")


def config_of(method: str, option: str, written: Any) -> Any:
    """What `--set method.OPTION=…` makes of a text, and a spec of a list."""
    value: dict[str, Any] = {"method": {"name": method}}
    if isinstance(written, str):
        value = spec.override(value, [f"method.{option}={written}"])
    else:
        value["method"][option] = written
    return RunSpec.from_json(value).method_config


def trained(method: str, config: Any) -> set[str]:
    """Names of what trains, on the meta device."""
    run = RunSpec.from_json({"method": {"name": method}})
    model = methods.get(method).apply(tiny.make_empty("llama"), config, Context(run))
    return {name for name, weight in model.named_parameters() if weight.requires_grad}


@pytest.mark.every_method
def test_every_method_with_targets_is_here() -> None:
    names = {method for method, _ in NAMED}
    assert {"lora", "qlora", "adalora", "vera", "loha", "lokr", "oft", "ia3", "ln_tuning"} <= names
    assert ("lora", "modules_to_save") in NAMED and ("full", "freeze") in NAMED


@pytest.mark.every_method
@pytest.mark.parametrize(("method", "option"), NAMED)
def test_every_way_of_writing_means_the_same(method: str, option: str) -> None:
    names, pattern = KNOWN.get((method, option), DEFAULT_KNOWN)
    if option == "modules_to_save":
        names, pattern = ["input_layernorm", "embed_tokens"], r"re:.*(input_layernorm|embed_tokens)"
    listed = config_of(method, option, names)
    text, spaced = ",".join(names), " ,  ".join(names)
    json_list = str(names).replace("'", '"')
    for written in (text, spaced, f"{text},", json_list):
        assert config_of(method, option, written) == listed, written
    hint = methods.get(method).config.__annotations__.get(option, "str | list[str]")
    assert form.parse_input(f" {spaced} ", hint, {"names": True}) == spaced, "the form asks it"
    one = config_of(method, option, names[0])
    assert one == config_of(method, option, names[:1]), "one name is a list of one"
    model = tiny.make_empty("llama")
    context = Context(RunSpec.from_json({"method": {"name": method}}))
    for config in (listed, one):
        problems = methods.get(method).check(model, config, context)
        assert not [problem for problem in problems if problem.field == f"method.{option}"]
    if methods.get(method).load_kwargs(listed):
        return  # its base is quantised while it is loaded
    assert trained(method, one) != trained(method, listed)
    if pattern:
        assert trained(method, config_of(method, option, pattern)) == trained(method, listed)
        mixed = config_of(method, option, [pattern, names[0]])
        assert trained(method, mixed) == trained(method, listed), "a pattern in a list"


@pytest.mark.every_method
@pytest.mark.parametrize(("method", "option"), NAMED)
def test_what_is_no_name_is_refused_with_the_way_to_write_a_pattern(
    method: str, option: str
) -> None:
    context = Context(RunSpec.from_json({"method": {"name": method}}))
    for written, words in (
        (".*_proj", "write 're:.*_proj'"),
        ("nothing", "'nothing' names no"),
        ("re:(", "'(' is not a valid regular expression"),
        ("re:nothing", "'re:nothing' names no"),
    ):
        config = config_of(method, option, written)
        problems = methods.get(method).check(tiny.make_empty("llama"), config, context)
        messages = [one.message for one in problems if one.field == f"method.{option}"]
        assert len(messages) == 1 and words in messages[0], written


def test_one_name_of_gpt2s_own_is_taken() -> None:
    config = config_of("lora", "target_modules", "c_attn")
    model = tiny.make_empty("gpt2")
    context = Context(RunSpec.from_json({"method": "lora"}))
    assert methods.get("lora").check(model, config, context) == []
    assert {layer.name for layer in target_layers(model, config.target_modules)} == {
        f"transformer.h.{index}.attn.c_attn" for index in range(2)
    }


def test_a_module_frozen_by_name_freezes_all_below_it() -> None:
    names = trained("full", config_of("full", "freeze", "mlp"))
    assert names and not [name for name in names if ".mlp." in name]
    pattern = config_of("full", "freeze", r"re:(?!.*norm).*")
    assert all("norm" in name for name in trained("full", pattern)), "over parameters only"


@pytest.mark.parametrize(
    ("kind", "options", "is_trained"),
    [
        ("llama", {"train_layers": "last 1"},
         lambda n: ".layers.1." in n or n in ("model.norm.weight", "lm_head.weight")),
        ("qwen3", {"train_layers": "last 1"},
         lambda n: ".layers.1." in n or n == "model.norm.weight"),
        ("llama", {"train_layers": "first 1"}, lambda n: ".layers.0." in n),
        ("neox", {"freeze": ["biases"]}, lambda n: not n.endswith("bias")),
        ("neox", {"train_layers": "1", "freeze": ["norms", "head"]},
         lambda n: ".layers.1." in n and "norm" not in n),
    ],
)  # fmt: skip
def test_full_trains_the_chosen_layers_and_what_stands_above_the_last(
    kind: str, options: dict[str, Any], is_trained: Any
) -> None:
    """With the last layer the final norm and an untied head; a tied one belongs to the input."""
    full, model = methods.get("full"), tiny.make_empty(kind)
    model = full.apply(model, full.config(**options), Context(None))
    for name, weight in model.named_parameters():
        assert weight.requires_grad == is_trained(name), name
