"""Saved adapters of strangers: only what a method of the lab writes is read, and no pickle."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lab import methods
from lab.errors import LabError
from lab.methods import Context
from lab.methods.parts import adapter_files
from lab.methods.parts.adapter_files import CONFIG, WEIGHTS
from lab.methods.parts.peft_method import PeftMethod
from lab.models import weights
from lab.spec import RunSpec
from tests.methods import tiny
from tests.models import hostile

A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
Load = Callable[[Path], str]


def config_of(name: str, **options: Any) -> Any:
    return RunSpec.from_json({"method": {"name": name, **options}}).method_config


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A result of each of some methods, in a folder by the method's name, as save writes it."""
    place = tmp_path_factory.mktemp("results")
    for name in ("lora", "prompt", "bottleneck", "lora_prompt", "top_layers_lora", "full", "ia3"):
        torch.manual_seed(0)
        model = tiny.make_model("llama")
        method, config = methods.get(name), config_of(name)
        context = Context(RunSpec(), tiny.make_tokenizer())
        method.prepare(model, config, context)
        (place / name).mkdir()
        method.save(method.apply(model, config, context), place / name)
    return place


@pytest.fixture
def refusal(tmp_path: Path) -> Callable[[Path], str]:
    """What the method says of its result in a folder, at check and on loading, with pickles lying
    beside; never a traceback, and none of them is read."""

    def why(place: Path) -> str:
        seen = tmp_path / "a pickle was read"
        hostile.plant(place, seen)
        method = methods.get(place.name)
        with pytest.raises(LabError) as at_check:
            method.check_saved(tiny.make_empty("llama"), place)
        with pytest.raises(LabError):
            method.load_saved(tiny.make_model("llama"), place)
        assert not seen.exists(), "a pickle was read"
        return str(at_check.value)

    return why


def copy_of(saved: Path, name: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved / name, tmp_path / name))


def test_whole_results_are_taken_with_pickles_beside_them(saved: Path, tmp_path: Path) -> None:
    for folder in sorted(saved.iterdir()):
        place = copy_of(saved, folder.name, tmp_path)
        hostile.plant(place, tmp_path / "seen")
        method = methods.get(folder.name)
        method.check_saved(tiny.make_empty("llama"), place)
        method.load_saved(tiny.make_model("llama"), place)
        assert not (tmp_path / "seen").exists(), f"{folder.name} read a pickle"


@pytest.mark.parametrize(
    "name", ["lora", "prompt", "bottleneck", "lora_prompt", "top_layers_lora", "full", "ia3"]
)
def test_a_result_without_its_file_or_with_a_damaged_one(
    saved: Path, tmp_path: Path, refusal: Load, name: str
) -> None:
    for file in sorted(saved.joinpath(name).glob("*.safetensors")):
        for number, content in enumerate((None, b"", hostile.raw(b"{}", length=2**60), b"PK" * 99)):
            place = tmp_path / str(number) / name
            shutil.copytree(saved / name, place, dirs_exist_ok=True)
            if content is None:
                (place / file.name).unlink()
            else:
                (place / file.name).write_bytes(content)
            message = refusal(place)
            assert "no " in message or "is not a readable safetensors file" in message, message
            shutil.rmtree(place)


FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"peft_type": "WARP"}, "of the type 'WARP', and LORA is needed"),
    ({"peft_type": None}, "and LORA is needed"),
    ({"peft_type": ["LORA"]}, "and LORA is needed"),
    ({"peft_type": "PROMPT_TUNING"}, "and LORA is needed"),
    (
        {"peft_type": "MULTITASK_PROMPT_TUNING", "prompt_tuning_init_state_dict_path": "x.bin"},
        "and LORA is needed",
    ),
    ({"task_type": "SEQ_CLS"}, "for the task SEQ_CLS"),
    ({"task_type": None}, "for the task null"),
    ({"r": 10**9}, "10,000,000 is the most"),
    ({"r": 10**6}, "and (1000000, 32) is needed"),
    ({"r": -1}, "adapter"),
    ({"r": "x"}, "adapter"),
    ({"r": 1e400}, "is the most"),
    ({"lora_alpha": float("nan")}, "is the most"),
    ({"rank_pattern": {"q_proj": 10**9}}, "is needed"),
    ({"rank_pattern": {"(a+)+$": 4}}, "an object by names of modules is needed"),
    ({"alpha_pattern": {"(.*)*x": 4}}, "an object by names of modules is needed"),
    ({"rank_pattern": [1]}, "an object by names of modules is needed"),
    ({"layer_replication": [[0, 10**6]]}, "which no method of the lab does"),
    ({"megatron_config": {"a": 1}, "megatron_core": "evil"}, "which no method of the lab does"),
    ({"megatron_core": "evil.module"}, "which no method of the lab does"),
    ({"corda_config": {"cache_file": "pytorch_model.bin"}}, "which no method of the lab does"),
    ({"eva_config": {"rho": 5.0}}, "which no method of the lab does"),
    ({"loftq_config": {"loftq_bits": 4}}, "which no method of the lab does"),
    ({"exclude_modules": "(a+)+$"}, "which no method of the lab does"),
    ({"layers_to_transform": [0]}, "which no method of the lab does"),
    ({"target_parameters": ["x"]}, "which no method of the lab does"),
    ({"unheard_of": {"code": "x"}}, "which no method of the lab does"),
    ({"init_lora_weights": "corda"}, "a saved adapter needs no start"),
    ({"init_lora_weights": "pissa_niter_999999"}, "a saved adapter needs no start"),
    ({"target_modules": ["nobody"]}, "cannot stand on this base model"),
    ({"modules_to_save": ["lm_head"]}, "lacks "),
]


@pytest.mark.parametrize(("fields", "says"), FIELDS)
def test_fields_of_an_adapter_config(
    saved: Path, tmp_path: Path, refusal: Load, fields: dict[str, Any], says: str
) -> None:
    place = copy_of(saved, "lora", tmp_path)
    hostile.change(place / CONFIG, **fields)
    assert says in refusal(place)


@pytest.mark.parametrize("text", ["", "[]", "{", "5", "null", "[" * 5000])
def test_an_adapter_config_that_is_none(
    saved: Path, tmp_path: Path, refusal: Load, text: str
) -> None:
    place = copy_of(saved, "lora", tmp_path)
    (place / CONFIG).write_text(text)
    assert f"no readable {CONFIG}" in refusal(place)


@pytest.mark.parametrize(
    "fields",
    [
        {"num_virtual_tokens": 10**9},
        {"num_virtual_tokens": 10**6},
        {"token_dim": 7},
        {"prompt_tuning_init": "TEXT", "tokenizer_name_or_path": "org/evil"},
        {"prompt_tuning_init_text": "x", "tokenizer_kwargs": {"trust_remote_code": True}},
        {"tokenizer_kwargs": {"trust_remote_code": True}},
    ],
)
def test_fields_of_a_prompts_config(
    saved: Path, tmp_path: Path, refusal: Load, fields: dict[str, Any]
) -> None:
    place = copy_of(saved, "prompt", tmp_path)
    hostile.change(place / CONFIG, **fields)
    refusal(place)


def test_an_adapter_goes_nowhere_else_for_its_base(saved: Path, tmp_path: Path) -> None:
    """The base is the run's: what the file says of another one is never followed."""
    place = copy_of(saved, "lora", tmp_path)
    hostile.change(
        place / CONFIG,
        base_model_name_or_path="org/evil",
        revision="refs/pr/1",
        auto_mapping={"base_model_class": "Evil", "parent_library": "evil"},
    )
    model = methods.get("lora").load_saved(tiny.make_model("llama"), place)
    settings = model.peft_config["default"]
    assert (settings.revision, settings.auto_mapping) == (None, None)
    assert settings.base_model_name_or_path != "org/evil"


def test_a_pattern_of_a_stranger_is_not_tried(saved: Path, tmp_path: Path) -> None:
    """The names come from the file's tensors, so that no pattern can take for ever."""
    place = copy_of(saved, "lora", tmp_path)
    before = json.loads((place / CONFIG).read_text())["target_modules"]
    hostile.change(place / CONFIG, target_modules="(([a-z_.0-9]+)+)+!")
    model = methods.get("lora").load_saved(tiny.make_model("llama"), place)
    targets = model.peft_config["default"].target_modules
    assert {name.rpartition(".")[2] for name in targets} == {n.rpartition(".")[2] for n in before}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({A: None}, f"lacks '{A}'"),
        ({A: torch.zeros(3, 32)}, "holds"),
        ({A: torch.zeros(16, 31)}, "holds"),
    ],
)
def test_tensors_that_do_not_fit_the_base(
    saved: Path, tmp_path: Path, refusal: Load, changes: dict[str, Any], says: str
) -> None:
    place = copy_of(saved, "lora", tmp_path)
    hostile.rewrite(place / WEIGHTS, **changes)
    assert says in refusal(place)


def test_a_seed_may_be_any_number_that_its_option_takes(tmp_path: Path) -> None:
    """Larger than any size may be."""
    method, config = methods.get("vera"), config_of("vera", rank=4, seed=2**31 - 1)
    model = method.apply(tiny.make_model("llama"), config, Context(RunSpec()))
    method.save(model, tmp_path)
    loaded = method.load_saved(tiny.make_model("llama"), tmp_path)
    assert loaded.peft_config["default"].projection_prng_key == 2**31 - 1


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("9 GiB")])
def test_running_out_of_memory_is_no_damaged_result(
    saved: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    import peft

    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(peft.PeftModel, "from_pretrained", fail)
    with pytest.raises(type(error)):
        methods.get("lora").load_saved(tiny.make_model("llama"), saved / "lora")


@pytest.mark.parametrize("vectors", [torch.zeros(16, 31), torch.zeros(16 * 32), None])
def test_a_soft_prompt_of_another_base(
    saved: Path, tmp_path: Path, refusal: Load, vectors: Any
) -> None:
    place = copy_of(saved, "lora_prompt", tmp_path)
    hostile.rewrite(place / "soft_prompt.safetensors", vectors=vectors, other=torch.zeros(1))
    assert "with vectors of 32 numbers" in refusal(place)


def test_an_adapter_of_another_base(saved: Path) -> None:
    with pytest.raises(LabError, match="belongs to another base model"):
        methods.get("lora").load_saved(tiny.make_model("gpt2"), saved / "lora")


@pytest.mark.parametrize(
    ("name", "file", "fields"),
    [
        ("bottleneck", "bottleneck.json", {"size": 10**9}),
        ("bottleneck", "bottleneck.json", {"size": 60_000}),
        ("bottleneck", "bottleneck.json", {"kind": "warp"}),
        ("bottleneck", "bottleneck.json", {"activation": "os.system"}),
        ("bottleneck", "bottleneck.json", {"unknown": 1}),
        ("full", "config.json", {"auto_map": {"AutoModel": "evil.M"}}),
        ("full", "config.json", {"transformers_weights": "pytorch_model.bin"}),
    ],
)
def test_settings_beside_other_results(
    saved: Path, tmp_path: Path, refusal: Load, name: str, file: str, fields: dict[str, Any]
) -> None:
    place = copy_of(saved, name, tmp_path)
    hostile.change(place / file, **fields)
    refusal(place)


def test_a_whole_result_whose_index_names_a_pickle(
    saved: Path, tmp_path: Path, refusal: Load
) -> None:
    place = copy_of(saved, "full", tmp_path)
    (place / "model.safetensors").rename(place / "x.safetensors")
    value = {"metadata": {}, "weight_map": {"a": "pytorch_model.bin", "b": "x.safetensors"}}
    (place / "model.safetensors.index.json").write_text(json.dumps(value))
    assert "'pytorch_model.bin', which is not" in refusal(place)


def test_the_sizes_of_a_result_cost_no_memory(saved: Path, tmp_path: Path, refusal: Load) -> None:
    import resource

    place = copy_of(saved, "lora", tmp_path)
    hostile.change(place / CONFIG, r=9_999_999)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refusal(place)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 300_000, f"{grown / 1024:.0f} MB were taken for an adapter that is refused"
    assert weights.empty_like(tiny.make_model("llama")).get_input_embeddings().weight.is_meta


def test_a_method_names_the_fields_that_only_it_sets(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter_files, "KNOWN", set(adapter_files.KNOWN))
    place = tmp_path / "lora"
    shutil.copytree(saved / "lora", place)
    hostile.change(place / CONFIG, qalora_group_size=8)
    base = tiny.make_empty("llama")
    with pytest.raises(LabError, match="sets 'qalora_group_size' to 8"):
        adapter_files.config_of(place, "LoraConfig", base)

    class OfATest(PeftMethod):
        peft_fields = ("qalora_group_size",)

    assert adapter_files.config_of(place, "LoraConfig", base).qalora_group_size == 8
