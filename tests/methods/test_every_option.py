"""No option of any method is ignored: changed alone, each changes what is trained, or how.

A method with a new option joins in by itself; where another value than the double of the default
is needed, or another option has to be set with it, it stands in `CHANGES`.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from lab import methods, schema
from lab.methods import Context
from lab.models.empty_model import meta_model
from lab.spec import RunSpec
from lab.train import checkpoint
from lab.train.loss import is_plain
from tests.methods import tiny
from tests.methods.conformance import Case, Trial

STEPS = 6
# (options of both, value of the changed one); without an entry: another choice, or twice as much
CHANGES: dict[tuple[str, str], tuple[dict[str, Any], Any]] = {
    ("full", "train_layers"): ({}, "last 1"),
    ("full", "freeze"): ({}, ("norms",)),
    ("adalora", "target_rank"): ({}, 3),
    ("adalora", "tinit_ratio"): ({"target_rank": 2, "tfinal_ratio": 0.0}, 0.5),
    ("adalora", "tfinal_ratio"): ({"target_rank": 2}, 0.6),
    ("adalora", "every"): ({"target_rank": 2, "tfinal_ratio": 0.0}, 2),
    ("adalora", "smoothing"): ({"target_rank": 2}, 0.1),
    ("bottleneck", "size"): ({}, 5),
    ("bottleneck", "reduction"): ({}, 8.0),
    ("ia3", "attention"): ({}, ("q_proj",)),
    ("ia3", "feed_forward"): ({}, ("up_proj",)),
    ("ln_tuning", "target_modules"): ({}, ("input_layernorm",)),
    ("lokr", "decompose_both"): ({"rank": 1}, True),
    ("lokr", "factor"): ({}, 2),
    ("oft", "block_size"): ({"block_size": 8}, 16),
    ("oft", "block_share"): ({"block_size": 8}, True),
    ("oft", "target_modules"): ({"block_size": 8}, ("q_proj",)),
    ("prefix", "text"): ({"init": "text", "text": "w1 w2"}, "w3 w4"),
    ("prefix", "projection"): ({}, True),
    ("prefix", "projection_width"): ({"projection": True}, 8),
    ("prompt", "text"): ({"init": "text", "text": "w1 w2"}, "w3 w4"),
    ("prefix", "init"): ({"text": "w1 w2"}, "text"),
    ("prompt", "init"): ({"text": "w1 w2"}, "text"),
    ("ptuning", "layers"): ({"encoder": "lstm"}, 1),
    ("ptuning", "dropout"): ({"encoder": "lstm"}, 0.5),
    ("lora_prompt", "start_text"): ({}, "w3 w4"),
    ("lora_embeddings", "new_tokens"): ({}, ("w1 w2",)),
    ("trainable_tokens", "tokens"): ({}, ("w7",)),
    ("vera", "seed"): ({}, 5),
    ("lora8bit", "threshold"): ({}, 0.5),
    ("qlora", "compute_dtype"): ({}, "bfloat16"),
    ("progressive", "patience"): ({}, 3),
    ("progressive", "min_delta"): ({"patience": 2}, 2.0),
    ("progressive", "every"): ({"trigger": "steps", "every": 2}, 4),
    ("progressive", "layers_at_once"): ({"trigger": "steps", "every": 4}, 2),
    ("progressive", "most_layers"): ({"trigger": "steps", "every": 1}, 1),
    ("progressive", "trigger"): ({"every": 1}, "steps"),
}
LORA: dict[str, tuple[dict[str, Any], Any]] = {
    "last_rank": ({}, 4),
    "layer_ranks": ({}, (4, 8)),
    "last_alpha": ({}, 4.0),
    "layer_alphas": ({}, (4.0, 8.0)),
    "modules_to_save": ({}, ("input_layernorm",)),
    "bias": ({}, "all"),
    "loraplus_lr_ratio": ({}, 4.0),
    "use_dora": ({}, True),
    "init_lora_weights": ({}, "gaussian"),
}
# what a method's check refuses with a reason; see tests/methods/test_options.py
REFUSED = {("qlora", "bias"), ("lora8bit", "bias"), ("lora8bit", "use_dora")}
ALL = [
    (method.name, field.name)
    for method in methods.all_methods()
    for field in dataclasses.fields(method.config)  # type: ignore[arg-type]
    if (method.name, field.name) not in REFUSED | {("top_layers_lora", "top_layers")}
    if field.name != "prepare_kbit"  # of 16-bit bases: tests/methods/test_options.py
]


def change_of(name: str, option: str) -> tuple[dict[str, Any], Any]:
    """(options of both, another value of `option`)."""
    if (name, option) in CHANGES:
        return CHANGES[name, option]
    if name in ("lora", "qlora", "lora8bit") and option in LORA:
        return LORA[option]
    if option == "target_modules":
        return {}, ("q_proj", "v_proj")
    config = methods.get(name).config
    (field,) = [field for field in schema.describe(config) if field.name == option]
    default = getattr(config(), option)
    if field.metadata.get("choices"):
        return {}, next(choice for choice in field.metadata["choices"] if choice != default)
    if isinstance(default, bool):
        return {}, not default
    if "dropout" in option:
        return {}, 0.5
    assert isinstance(default, (int, float)) and default, (
        f"CHANGES has to say another value of {name}.{option}"
    )
    return {}, 2 * default


class Course:
    """What can be seen of a method that trains for a few steps."""

    def __init__(self, trial: Trial) -> None:
        method, config = trial.method, trial.config
        self.loaded = str({key: vars(option) if hasattr(option, "__dict__") else option
                           for key, option in method.load_kwargs(config).items()})  # fmt: skip
        tokenizer = trial.context.tokenizer
        method.extend_tokenizer(tokenizer, config)
        self.words = len(tokenizer)
        model, optimizer = trial.begin(trial.base())
        method.set_total_steps(model, config, STEPS)
        trial.fused = is_plain(model.get_output_embeddings()) and bool(method.can_fuse_loss)
        self.rates = sorted(
            (group["lr"], sum(weight.numel() for weight in group["params"]))
            for group in optimizer.param_groups
        )
        self.losses, self.trainable = [], []
        for step in range(1, STEPS + 1):
            self.losses.append(trial.step(model, optimizer, step))
            # losses of an evaluation that fall for two steps and then hardly
            method.on_evaluate(model, config, step, 5.0 - min(step, 2) - 0.001 * step)
            self.trainable.append(len(checkpoint.trainable(model)))
        self.weights = checkpoint.trainable(model)

    def is_as(self, other: Course) -> bool:
        return (
            (self.loaded, self.words, self.rates) == (other.loaded, other.words, other.rates)
            and (self.losses, self.trainable) == (other.losses, other.trainable)
            and self.weights.keys() == other.weights.keys()
            and all(
                torch.equal(weight, other.weights[name]) for name, weight in self.weights.items()
            )
        )


@pytest.fixture(scope="module")
def courses() -> dict[Any, Course]:
    return {}


@pytest.mark.every_method
@pytest.mark.parametrize(("name", "option"), ALL, ids=lambda value: value)
def test_an_option_changes_something(
    name: str,
    option: str,
    courses: dict[Any, Course],
    tiny_models: dict[str, Path],
    wide_models: dict[str, Path],
    tmp_path: Path,
) -> None:
    base, value = change_of(name, option)
    assert base.get(option, getattr(methods.get(name).config(), option)) != value

    def course(**options: Any) -> Course:
        kind = "neox" if option == "bias" else "llama"  # a Llama has none
        case = Case(name, kind, tuple(options.items()))
        if case not in courses:
            trial = Trial(case, tiny_models[kind], tiny.make_tokenizer(), tmp_path)
            if "quantization_config" in trial.method.load_kwargs(trial.config):
                trial.folder = wide_models[kind]
            courses[case] = Course(trial)
        return courses[case]

    changed = course(**(base | {option: value}))
    assert not changed.is_as(course(**base)), f"{name}.{option} = {value!r} changes nothing"


def test_as_many_layers_open_as_were_chosen() -> None:

    config = tiny.make_config("llama")
    config.num_hidden_layers = 4
    method = methods.get("top_layers_lora")
    for count in (1, 3):
        spec = RunSpec.from_json({"method": {"name": method.name, "top_layers": count}})
        model = meta_model(config)
        model = method.apply(model, spec.method_config, Context(spec))
        names = checkpoint.trainable(model)
        opened = {name.split(".layers.")[1][0] for name in names if ".lora_" not in name}
        beside = {name.split(".layers.")[1][0] for name in names if ".lora_" in name}
        assert opened == set("3210"[:count]) and beside == set("0123") - opened
