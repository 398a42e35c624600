"""Options do what their help says, and what cannot be is refused with the way out."""

from __future__ import annotations

import ast
import importlib
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lab import methods
from lab.atomic_files import read_object, write_json
from lab.errors import LabError
from lab.export.script import script
from lab.methods import Context, lora
from lab.methods.adalora import Adalora
from lab.methods.parts import diagram
from lab.spec import RunSpec
from lab.train import checkpoint
from tests.methods import tiny
from tests.methods.conformance import STEPS, Case, Trial

REFUSED = [
    ("lora", {"modules_to_save": ["embed_tokens"]}, "gpt2", "method.modules_to_save",
     "names no module"),
    ("lora", {"modules_to_save": ["mlp"]}, "llama", "method.modules_to_save",
     "which has an update already"),
    ("lora", {"layer_ranks": [4]}, "llama", "method.layer_ranks", "the model has 2 layers"),
    (
        "lora", {"layer_ranks": [4, 8], "last_rank": 2}, "llama", "method.last_rank",
        "cannot be set beside layer_ranks",
    ),
    ("lora", {"init_lora_weights": "olora"}, "gpt2", "method.init_lora_weights",
     "Choose pissa or default"),
    ("lora", {"init_lora_weights": "pissa", "rank": 64}, "neox", "method.rank", "Lower it to 32"),
    ("lora", {"init_lora_weights": "pissa", "use_dora": True}, "llama", "method.use_dora",
     "Choose default there"),
    ("lora", {"target_modules": ["nothing"]}, "llama", "method.target_modules",
     "Choose from: down_proj"),
    ("lora", {"target_modules": "re:*"}, "llama", "method.target_modules",
     "is not a valid regular expression"),
    ("lora", {"target_modules": ".*_proj"}, "llama", "method.target_modules", "write 're:.*_proj'"),
    ("lora", {"modules_to_save": [".*norm"]}, "llama", "method.modules_to_save",
     "write 're:.*norm'"),
    ("ia3", {"attention": ["k_pr"]}, "llama", "method.attention", "'k_pr' names no linear layer"),
    ("qlora", {"bias": "all"}, "llama", "method.bias", "are frozen"),
    ("lora8bit", {"use_dora": True}, "llama", "method.use_dora", "Choose qlora or lora"),
    ("adalora", {"target_rank": 12}, "llama", "method.target_rank", "must be below rank, 12"),
    ("adalora", {"tinit_ratio": 0.6, "tfinal_ratio": 0.5}, "llama", "method.tfinal_ratio",
     "Lower one"),
    ("oft", {"block_size": 24}, "llama", "method.block_size", "All of them divide by 32"),
    ("lora", {"bias": "all"}, "llama", "method.bias", "this model has no biases"),
    ("lora", {"bias": "lora_only"}, "llama", "method.bias", "the target modules have no biases"),
    ("ia3", {"attention": ["keys"]}, "llama", "method.attention", "Choose from: down_proj"),
    ("ln_tuning", {"target_modules": ["q_norm"]}, "llama", "method.target_modules",
     "input_layernorm"),
    ("trainable_tokens", {"tokens": ["two words"]}, "llama", "method.tokens", "not one token"),
    ("prompt", {"init": "text", "text": " "}, "llama", "method.text", "is empty"),
    ("prefix", {"init": "text", "projection": True}, "llama", "method.init", "Choose random"),
    ("prefix", {"init": "text", "text": "  "}, "llama", "method.text", "is empty"),
    ("lora", {"layer_alphas": [4.0]}, "llama", "method.layer_alphas", "the model has 2 layers"),
    (
        "lora", {"layer_alphas": [4.0, 8.0], "last_alpha": 2.0}, "llama", "method.last_alpha",
        "cannot be set beside layer_alphas",
    ),
    ("lora", {"init_lora_weights": "olora", "layer_ranks": [4, 64]}, "llama", "method.rank",
     "Lower it to 32"),
    ("lora8bit", {"bias": "all"}, "llama", "method.bias", "are frozen"),
    ("adalora", {"tinit_ratio": 0.5, "tfinal_ratio": 0.46}, "llama", "method.tfinal_ratio",
     "less than a twentieth"),
    ("trainable_tokens", {"tokens": []}, "llama", "method.tokens", "name some"),
    ("lora_embeddings", {"new_tokens": ["<a>", " "]}, "llama", "method.new_tokens",
     "1 to 100 characters"),
    ("lora_embeddings", {"new_tokens": ["x" * 101]}, "llama", "method.new_tokens",
     "1 to 100 characters"),
    ("lora_embeddings", {"new_tokens": [f"<{n}>" for n in range(10_001)]}, "llama",
     "method.new_tokens", "at most 10,000"),
    ("top_layers_lora", {"top_layers": 2}, "llama", "method.top_layers", "the model has 2 layers"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "options", "kind", "field", "says"), REFUSED)
def test_what_cannot_be_is_refused(
    name: str, options: dict[str, Any], kind: str, field: str, says: str, tiny_tokenizer: Any
) -> None:
    method = methods.get(name)
    context = Context(None, tiny_tokenizer)
    width = 64 if method.load_kwargs(method.config()) else 32
    problems = method.check(tiny.make_empty(kind, width), method.config(**options), context)
    assert [problem.field for problem in problems] == [field]
    assert says in problems[0].message


def test_a_factor_of_zero_is_refused_wherever_a_spec_is_read() -> None:
    for factor, is_refused in ((0, True), (-1, False), (1, False), (-2, True)):
        problems: list[Any] = []
        RunSpec.parse({"method": {"name": "lokr", "factor": factor}}, problems)
        assert [problem.field for problem in problems] == ["method.factor"] * is_refused, factor


@pytest.mark.parametrize("options", [{"layer_ranks": [4, 0]}, {"layer_ranks": ["x", 8]}])
def test_lists_of_numbers_are_checked(options: dict[str, Any]) -> None:
    problems: list[Any] = []
    RunSpec.parse({"method": {"name": "lora", **options}}, problems)
    assert [problem.field for problem in problems] == ["method.layer_ranks"]


def test_ranks_and_alphas_run_over_the_layers() -> None:
    from lab.methods.lora import LoraConfig
    from lab.methods.parts.lora_ranks import ranks_and_alphas
    from lab.methods.parts.target_modules import LinearLayer

    layers = [LinearLayer(f"model.layers.{number}.q_proj", 8, 8) for number in range(5)]

    def of(**options: Any) -> list[tuple[int, float]]:
        return list(ranks_and_alphas(layers, LoraConfig(rank=4, alpha=8.0, **options)).values())

    assert of() == [(4, 8.0)] * 5
    assert of(last_rank=12) == [(4, 8.0), (6, 12.0), (8, 16.0), (10, 20.0), (12, 24.0)]
    assert of(last_rank=2, last_alpha=4.0)[-1] == (2, 4.0)
    assert of(layer_ranks=[1, 2, 3, 4, 5])[2] == (3, 6.0)
    assert of(layer_alphas=[1.0, 2.0, 3.0, 4.0, 5.0])[3] == (4, 4.0)


def test_plus_gives_b_a_rate_of_its_own(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    case = Case("lora", "llama", (("loraplus_lr_ratio", 16.0),))
    trial = Trial(case, tiny_models["llama"], None, tmp_path)
    model, optimizer = trial.begin(trial.base())
    rates = {
        id(weight): group["lr"] for group in optimizer.param_groups for weight in group["params"]
    }
    for name, weight in checkpoint.trainable(model).items():
        assert rates[id(weight)] == pytest.approx(0.16 if ".lora_B." in name else 0.01)


def test_adalora_prunes_to_its_budget(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    case = Case("adalora", "llama", (("rank", 6), ("target_rank", 2)))
    trial = Trial(case, tiny_models["llama"], None, tmp_path)
    trial.fused = True
    model, optimizer = trial.begin(trial.base())
    left = []
    for step in range(1, STEPS + 1):
        trial.step(model, optimizer, step)
        values = [weight for name, weight in model.named_parameters() if ".lora_E." in name]
        left.append(sum(int((value != 0).sum()) for value in values))
    assert len(values) == 14 and left[0] == 14 * 6
    assert left == sorted(left, reverse=True), "ranks only fall"
    assert left[-1] == 14 * 2
    assert isinstance(trial.method, Adalora) and trial.method.penalty(model, trial.config) > 0


def test_ranks_that_are_settled_stay_settled_after_a_resume(
    tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    """In the final phase nothing is scored any more: what is left is only known from the state."""
    case = Case("adalora", "llama", (("rank", 6), ("target_rank", 2)))
    trial = Trial(case, tiny_models["llama"], None, tmp_path)
    trial.fused = True
    model, optimizer = trial.begin(trial.base())
    for step in range(1, 9):
        trial.step(model, optimizer, step)
    again, second = trial.begin(trial.base())
    trial.method.load_state(again, trial.method.state(model))
    with torch.no_grad():
        for name, weight in checkpoint.trainable(again).items():
            weight.copy_(checkpoint.trainable(model)[name])
    trial.step(again, second, 9)
    values = [weight for name, weight in again.named_parameters() if ".lora_E." in name]
    assert sum(int((value != 0).sum()) for value in values) == 14 * 2
    left = model.peft_config["default"].rank_pattern
    assert left and again.peft_config["default"].rank_pattern == left


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("settle", [0.0, 0.9])
def test_adalora_trains_however_short_the_run_is(
    tiny_models: dict[str, Path], tmp_path: Path, steps: int, settle: float
) -> None:
    """From the second step on there are scores to prune by."""
    options = (("rank", 6), ("target_rank", 2), ("tfinal_ratio", settle), ("tinit_ratio", 0.0))
    trial = Trial(Case("adalora", "llama", options), tiny_models["llama"], None, tmp_path)
    trial.fused = True
    model, optimizer = trial.begin(trial.base())
    trial.method.set_total_steps(model, trial.config, steps)
    for step in range(1, steps + 1):
        trial.step(model, optimizer, step)
    values = [weight for name, weight in model.named_parameters() if ".lora_E." in name]
    left = sum(int((value != 0).sum()) for value in values)
    assert left == 14 * 2 or (steps == 1 and left > 14 * 2)


def test_a_quantised_base_keeps_its_other_types(tiny_models: dict[str, Path]) -> None:
    """No copies in float32 of embeddings, norms and head; adapters in the type asked for."""
    from lab.models import weights
    from lab.models.catalog import ModelSource

    for name, adapters in (("qlora", "bfloat16"), ("lora8bit", "float32")):
        method = methods.get(name)
        spec = RunSpec.from_json({"method": name, "train": {"adapter_precision": adapters}})
        config = spec.method_config
        source = ModelSource("tiny", str(tiny_models["llama"]), local_only=True)
        model = weights.load_model(source, torch.bfloat16, **method.load_kwargs(config))
        # repacked at the first evaluation, they could not be trained on
        assert not any(getattr(m, "support_avx512bf16_for_cpu", False) for m in model.modules())
        model = method.apply(model, config, Context(spec))
        types = {name: weight.dtype for name, weight in model.named_parameters()}
        own = {types[name] for name in checkpoint.trainable(model)}
        assert own == {getattr(torch, adapters)}
        others = {name: kind for name, kind in types.items() if "lora_" not in name}
        packed = {name for name, kind in others.items() if kind in (torch.uint8, torch.int8)}
        assert len(packed) == 14, "seven projections in two layers"
        assert {kind for name, kind in others.items() if name not in packed} == {torch.bfloat16}
        empty = tiny.make_empty("llama").to(torch.bfloat16)
        predicted = tiny.stored_base_bytes(empty, method, config)
        stored = sum(
            weight.numel() * weight.element_size()
            for name, weight in model.named_parameters()
            if "lora_" not in name
        )
        assert stored < predicted < 1.2 * stored, "the scales come on top"
        wide = type(config)(prepare_kbit=True)
        before = {name for name, kind in types.items() if kind == torch.bfloat16}
        method.prepare(model, wide, Context(spec))
        types = {name: weight.dtype for name, weight in model.named_parameters()}
        left = {name for name in types if "lora_" not in name and types[name] == torch.bfloat16}
        assert before and not left, "Norms, embeddings and head are float32."
        assert {name for name in types if types[name] in (torch.uint8, torch.int8)} == packed
        empty = tiny.make_empty("llama").to(torch.bfloat16)
        method.prepare(empty, wide, Context(spec))
        assert 1.2 * predicted < tiny.stored_base_bytes(empty, method, wide) < 4 * predicted


def test_a_base_that_four_bits_would_distort_is_refused(
    tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lab.methods import qlora

    assert qlora.dequantises_exactly(64, "nf4") and qlora.dequantises_exactly(64, "fp4")
    monkeypatch.setattr(qlora, "dequantises_exactly", lambda width, levels: width % 64 == 0)
    method, config = methods.get("qlora"), qlora.QloraConfig()
    spec = RunSpec.from_json({"method": "qlora"})
    for width, count in ((32, 1), (64, 0)):
        model = tiny.make_empty("llama", width)
        problems = method.check(model, config, Context(spec, tiny_tokenizer))
        assert len(problems) == count
    (problem,) = method.check(tiny.make_empty("llama"), config, Context(spec, tiny_tokenizer))
    assert "rows of 32 weights" in problem.message and "lora8bit" in problem.message
    assert method.check(tiny.make_empty("llama"), config, Context(spec)) == [], "for any device"


def test_a_base_that_was_taken_apart_otherwise_is_no_resume() -> None:
    """The result is the difference to the start of the first attempt."""
    spec = RunSpec.from_json({"method": {"name": "lora", "rank": 2, "init_lora_weights": "pissa"}})
    method = methods.get("lora")
    model = method.apply(tiny.make_model("llama"), spec.method_config, Context(spec))
    state = {name: start.clone() for name, start in method.state(model).items()}
    assert len(state) == 2 * 14
    method.load_state(model, state)
    name = next(iter(state))
    for other in (
        state | {name: state[name] + 1e-6},
        {n: start for n, start in state.items() if n != name},
    ):
        with pytest.raises(LabError, match="initialisation differs from the one in the checkpoint"):
            method.load_state(model, other)


def test_a_picture_fills_what_trains_and_says_it() -> None:
    picture = diagram.figure({"head": diagram.ALL, "attention": "+ B·A"})
    boxes = [box for box in ElementTree.fromstring(picture) if box.tag.endswith("rect")]
    filled = [box for box in boxes if box.get("fill") == diagram.TRAINED]
    assert len(filled) == 2, "the head, and the box beside attention"
    assert "Trained: head, + B·A beside attention" in picture
    with pytest.raises(KeyError):
        diagram.figure({"heads": diagram.ALL})


@pytest.mark.every_method
@pytest.mark.parametrize("name", methods.names())
def test_script_picture_and_words(name: str) -> None:
    method = methods.get(name)
    spec = RunSpec.from_json({"method": name})
    try:
        ast.parse(script(spec, "MODEL", "data.jsonl", ""))
    except LabError as error:  # a method of the lab's own: said, with the reason
        assert not method.can_script and "There is no plain script for" in str(error)
    picture = ElementTree.fromstring(method.figure)
    drawn = [text for text in picture.itertext() if text.strip()]
    labels = [label for label in method.diagram_labels.values() if label != diagram.ALL]
    assert method.diagram_labels and set(labels) <= set(drawn), "diagram_labels mark what trains"
    assert method.formula and method.parameter_formula, "both stand beside the figure"
    assert len(method.description) > 150, "a paragraph for learners"
    module = importlib.import_module(type(method).__module__)
    assert "Trainable" in (module.__doc__ or ""), "formula, shapes and count stand on top"


@pytest.mark.parametrize("use_rslora", [False, True])
def test_twice_the_rank_keeps_the_scale_of_every_layer(tmp_path: Path, use_rslora: bool) -> None:
    """What PiSSA and OLoRA write: the start is taken off by as many ranks again."""
    tensors = {"x.lora_A.weight": torch.ones(2, 3), "x.lora_B.weight": torch.ones(4, 2)}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    settings = {"use_rslora": use_rslora, "r": 4, "lora_alpha": 8, "rank_pattern": {"x": 2},
                "alpha_pattern": {"x": 6.0}}  # fmt: skip
    write_json(tmp_path / "adapter_config.json", settings)
    start = {name.replace(".weight", ".default.weight"): w / 2 for name, w in tensors.items()}
    lora._save_as_plain_lora(SimpleNamespace(initial_factors=start), tmp_path)
    after = read_object(tmp_path / "adapter_config.json") or {}
    power = 0.5 if use_rslora else 1.0
    assert after["lora_alpha"] / after["r"] ** power == pytest.approx(8 / 4**power)
    alpha, rank = after["alpha_pattern"]["x"], after["rank_pattern"]["x"]
    assert rank == 4 and alpha / rank**power == pytest.approx(6 / 2**power)
    merged = load_file(tmp_path / "adapter_model.safetensors")
    update = merged["x.lora_B.weight"] @ merged["x.lora_A.weight"]
    assert update == pytest.approx(torch.full((4, 3), 2.0 - 0.5)), "what was learned, no more"
