"""Model folders of strangers: what is not whole, or names anything beyond itself, is refused at
check, and no pickle is ever read."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lab.errors import LabError
from lab.models import base_model, catalog, fit, folder, weights
from lab.models.headers import Stored
from tests.models import hostile

INDEX = "model.safetensors.index.json"
BIN = "pytorch_model.bin"
Q = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model, with a pickle beside it under every name that there is."""
    copy = tmp_path / "model"
    shutil.copytree(tiny_model, copy)
    hostile.plant(copy, tmp_path / "a pickle was read")
    return copy


@pytest.fixture
def refusal(
    model: Path, tmp_path: Path, make_spec: Callable[..., dict[str, Any]]
) -> Callable[[], str]:
    """Why the planner refuses the folder; loading it is refused as well, and reads no pickle."""
    from tests.answers import check

    def why() -> str:
        problems = check(make_spec() | {"model": str(model)})["problems"]
        source = catalog.ModelSource("it", str(model), local_only=True)
        for load in (
            lambda: weights.load_model(source, torch.float32),
            lambda: weights.load_tokenizer(source),
        ):
            try:
                load()
            except LabError:
                continue
        assert not (tmp_path / "a pickle was read").exists(), "a pickle was read"
        assert [problem["field"] for problem in problems] == ["model"], problems
        return str(problems[0]["message"])

    return why


def sharded(model: Path, weight_map: Any, metadata: Any = None, *, single: bool = False) -> None:
    """The weights as a file by another name, and an index."""
    if not single:
        (model / "model.safetensors").rename(model / "part.safetensors")
    value = {"metadata": {} if metadata is None else metadata, "weight_map": weight_map}
    (model / INDEX).write_text(json.dumps(value))


def test_the_canary_sings(tmp_path: Path) -> None:
    """Else the other tests would show nothing."""
    import pickle

    hostile.plant(tmp_path, tmp_path / "seen")
    pickle.loads((tmp_path / BIN).read_bytes())
    assert (tmp_path / "seen").exists()


def test_the_environment_keeps_a_pickle_from_running(model: Path, tmp_path: Path) -> None:
    """The last wall: a library that asks for a whole pickle gets only tensors."""
    code = (
        "import lab, sys, torch\n"
        "try: torch.load(sys.argv[1], weights_only=False)\n"
        "except Exception as error: print(type(error).__name__)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(model / BIN)], capture_output=True, text=True, timeout=120
    )
    assert "UnpicklingError" in result.stdout, result.stderr
    assert not (tmp_path / "a pickle was read").exists()


def test_pickles_beside_whole_weights_are_left_alone(
    model: Path, tmp_path: Path, make_spec: Callable[..., dict[str, Any]]
) -> None:
    from tests.answers import check

    (model / "pytorch_model.bin.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": {"x": BIN}})
    )
    assert check(make_spec() | {"model": str(model)})["problems"] == []
    weights.load_model(catalog.resolve(str(model)), torch.float32)
    assert not (tmp_path / "a pickle was read").exists()


@pytest.mark.parametrize(
    "value",
    [
        BIN,
        "../model.safetensors",
        "/etc/passwd",
        "sub/part.safetensors",
        "part.safetensors/../" + BIN,
        "..\\part.safetensors",
        ".safetensors",
        "part.safetensors\0.bin",
        "part.SAFETENSORS",
        "part.safetensors ",
        "",
        None,
        5,
        ["part.safetensors"],
        {"a": 1},
    ],
)
def test_an_index_names_safetensors_of_its_folder_only(
    refusal: Callable[[], str], model: Path, value: Any
) -> None:
    sharded(model, {"a": "part.safetensors", "b": value})
    assert "which is not the name of a .safetensors file in the same folder" in refusal()


@pytest.mark.parametrize("names", [{"a": BIN}, {"a": "part.safetensors", "b": BIN}])
def test_an_empty_safetensors_hides_no_index_of_pickles(
    refusal: Callable[[], str], model: Path, names: dict[str, str]
) -> None:
    (model / "model.safetensors").unlink()
    (model / "x.safetensors").write_bytes(b"")
    for index in (INDEX, "pytorch_model.bin.index.json"):
        (model / index).write_text(json.dumps({"metadata": {}, "weight_map": names}))
    assert "which is not the name of a .safetensors file" in refusal()
    (model / INDEX).unlink()
    assert f"has neither model.safetensors nor {INDEX}" in refusal()
    (model / "x.safetensors").unlink()
    assert "has no *.safetensors weights" in refusal()


@pytest.mark.parametrize("text", ["", "[]", "{", '{"weight_map": []}', '{"weight_map": {}}', "5"])
def test_an_index_that_is_none(refusal: Callable[[], str], model: Path, text: str) -> None:
    sharded(model, {})
    (model / INDEX).write_text(text)
    assert "has no weight_map and metadata" in refusal()


def test_an_index_of_missing_files_and_parts_of_other_loaders(
    refusal: Callable[[], str], model: Path
) -> None:
    sharded(model, {"a": "part.safetensors", "b": "model-00002-of-00002.safetensors"})
    assert "lacks model-00002-of-00002.safetensors" in refusal()
    sharded(model, {"a": "part.safetensors"}, single=True)
    part = "shard-00001-model-00001-of-00001.safetensors"
    shutil.copyfile(model / "part.safetensors", model / part)
    assert "a part of a distributed checkpoint" in refusal()


def test_a_sharded_model_is_loaded(model: Path) -> None:
    sharded(model, {Q: "part.safetensors"})
    source = catalog.resolve(str(model))
    loaded = weights.load_model(source, torch.float32)
    assert torch.equal(loaded.get_parameter(Q), load_file(model / "part.safetensors")[Q])


@pytest.mark.parametrize(
    "content",
    [b"", b"\0" * 8, hostile.raw(b"{}", length=2**60), hostile.raw(b"[" * 99), b"PK\x03\x04" * 99],
)
def test_damaged_weights_are_refused(
    refusal: Callable[[], str], model: Path, content: bytes
) -> None:
    (model / "model.safetensors").write_bytes(content)
    assert "is not a readable safetensors file" in refusal()
    sharded(model, {"a": "part.safetensors"})
    assert "'part.safetensors' is not a readable safetensors file" in refusal()


@pytest.mark.parametrize("kept", [0, 7, 8, 100, 5_000, -1])
def test_truncated_weights_are_refused(refusal: Callable[[], str], model: Path, kept: int) -> None:
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    assert "is not a readable safetensors file" in refusal()


def test_weights_that_are_no_files(refusal: Callable[[], str], model: Path, tmp_path: Path) -> None:
    file = model / "model.safetensors"
    file.rename(tmp_path / "elsewhere.safetensors")
    file.symlink_to(tmp_path / "elsewhere.safetensors")
    assert "is a link that leaves the folder" in refusal()
    file.unlink()
    file.mkdir()
    assert "not a file" in refusal()
    file.rmdir()
    os.mkfifo(file)
    assert "is not a regular file" in refusal()
    file.unlink()
    file.symlink_to("model.safetensors")
    assert "is not a regular file" in refusal(), "a link to itself"


def test_links_into_the_blobs_of_the_hubs_cache_are_followed(model: Path, tmp_path: Path) -> None:
    repository = tmp_path / "models--org--name"
    snapshot = repository / "snapshots" / "abc"
    (repository / "blobs").mkdir(parents=True)
    shutil.move(model, snapshot)
    blob = repository / "blobs" / "0123"
    (snapshot / "model.safetensors").rename(blob)
    (snapshot / "model.safetensors").symlink_to("../../blobs/0123")
    link = tmp_path / "link to the folder"
    link.symlink_to(snapshot)
    for place in (snapshot, link):
        assert Q in folder.stored_tensors(place, "it")
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to("../../../../../etc/hostname")
    with pytest.raises(LabError, match="leaves the folder"):
        folder.stored_tensors(snapshot, "it")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({Q: None}, f"there is no '{Q}'"),
        ({Q: torch.zeros(3, 5)}, f"'{Q}' is (3, 5), and (32, 32) is needed"),
        ({Q: torch.zeros(32, 32, dtype=torch.int8)}, f"'{Q}' has the type I8"),
        ({Q: torch.zeros(32, 32, dtype=torch.float8_e4m3fn)}, f"'{Q}' has the type F8_E4M3"),
        ({Q: torch.zeros(0)}, f"'{Q}' is (0,)"),
    ],
)
def test_weights_that_do_not_fit_their_config(
    refusal: Callable[[], str], model: Path, changes: dict[str, Any], says: str
) -> None:
    hostile.rewrite(model / "model.safetensors", **changes)
    message = refusal()
    assert "do not fit its config.json" in message and says in message


def test_the_first_misfits_are_named_and_the_others_counted(
    refusal: Callable[[], str], model: Path
) -> None:
    hostile.change(model / "config.json", num_hidden_layers=4)
    message = refusal()
    assert "there is no 'model.layers.2." in message and "and 15 more" in message, message
    (model / "model.safetensors").write_bytes(hostile.tensors({}))
    assert "hold no tensors" in refusal()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_in_other_floating_types_and_some_too_many_fit(
    model: Path, make_spec: Callable[..., dict[str, Any]], dtype: torch.dtype
) -> None:
    from tests.answers import check

    changes = {Q: torch.zeros(32, 32, dtype=dtype), "model.rotary_emb.inv_freq": torch.zeros(2)}
    hostile.rewrite(model / "model.safetensors", **changes)
    assert check(make_spec() | {"model": str(model)})["problems"] == []


KERNEL = "kernels-community/flash-attn2"
CONFIGS: list[tuple[dict[str, Any], str]] = [
    ({"auto_map": {}}, "needs code of its own"),
    ({"auto_map": {"AutoModelForCausalLM": "evil.Model"}}, "needs code of its own"),
    ({"text_config": {"auto_map": {"AutoModel": "org/x--evil.M"}}}, "needs code of its own"),
    ({"a": [{"b": [{"auto_map": []}]}]}, "needs code of its own"),
    ({"attn_implementation": KERNEL}, "which is code of the hub"),
    ({"_attn_implementation": f"{KERNEL}@main:f"}, "which is code of the hub"),
    ({"_attn_implementation_internal": KERNEL}, "which is code of the hub"),
    ({"attn_implementation": {"": "sdpa", "text_config": KERNEL}}, "which is code of the hub"),
    ({"text_config": {"_attn_implementation": KERNEL}}, "which is code of the hub"),
    ({"attn_implementation": "paged|" + KERNEL}, "which is code of the hub"),
    ({"attn_implementation": "warp"}, "which the lab does not know"),
    ({"attn_implementation": 5}, "which the lab does not know"),
    ({"attn_implementation": ["sdpa"]}, "which the lab does not know"),
    ({"experts_implementation": "sonicmoe"}, "which the lab does not know"),
    ({"_experts_implementation": "org/experts"}, "which is code of the hub"),
    ({"use_kernels": True}, "wants kernels of the hub"),
    ({"kernel_config": {"RMSNorm": "org/x:Norm"}}, "wants kernels of the hub"),
    ({"transformers_weights": "adapter_model.bin"}, "names another file for its weights"),
    ({"transformers_weights": "../x.safetensors"}, "names another file for its weights"),
    ({"configuration_files": ["config.4.0.0.json"]}, "keeps its config in another file"),
    ({"fusion_config": {"x": True}}, "wants its layers rewritten"),
    ({"vision_config": {"use_pretrained_backbone": True}}, "loads another model"),
    ({"tokenizer_class": "AutoModelForCausalLM"}, "which is not a tokenizer"),
    ({"tokenizer_class": ["X"]}, "which is not a tokenizer"),
    ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantised already"),
    ({"dtype": "load"}, "names the unknown type 'load'"),
    ({"torch_dtype": "os.system"}, "names the unknown type"),
]


@pytest.mark.parametrize(("fields", "says"), CONFIGS)
def test_a_config_that_names_something_else_is_refused(
    refusal: Callable[[], str], model: Path, fields: dict[str, Any], says: str
) -> None:
    hostile.change(model / "config.json", **fields)
    assert says in refusal()


@pytest.mark.parametrize("value", [None, "eager", "sdpa", {"": "sdpa", "text_config": None}])
def test_an_attention_of_the_library_is_taken(model: Path, value: Any) -> None:
    hostile.change(model / "config.json", attn_implementation=value, _attn_implementation=value)
    catalog.resolve(str(model))


@pytest.mark.parametrize(
    "fields",
    [
        {"tokenizer_class": "AutoModelForCausalLM"},
        {"tokenizer_class": "LlamaForCausalLM"},
        {"tokenizer_class": "AutoTokenizer"},
        {"tokenizer_class": "pipeline"},
        {"tokenizer_class": "os.system"},
        {"tokenizer_class": 5},
        {"auto_map": {"AutoTokenizer": ["evil.T", None]}},
        {"auto_map": ["evil.T", None]},
        {"gguf_file": "../x.gguf"},
        {"init_inputs": [1, 2]},
        {"tokenizer_object": {}, "post_processor": "x"},
        {"fast_tokenizer_files": ["../x/tokenizer.4.0.0.json"]},
        {"fast_tokenizer_files": [f"tokenizer.4.0.0.{BIN}"]},
    ],
)
def test_a_tokenizer_config_that_names_something_else_is_refused(
    refusal: Callable[[], str], model: Path, fields: dict[str, Any]
) -> None:
    hostile.change(model / "tokenizer_config.json", **fields)
    assert "tokenizer_config.json" in refusal()


@pytest.mark.parametrize("text", ["[]", "5", "{", "", "null"])
@pytest.mark.parametrize("name", ["tokenizer_config.json", "generation_config.json"])
def test_configs_that_are_no_objects(
    refusal: Callable[[], str], model: Path, name: str, text: str
) -> None:
    (model / name).write_text(text)
    assert name in refusal()


@pytest.mark.parametrize(
    "fields", [{"eos_token_id": "x"}, {"eos_token_id": [1, "x"]}, {"custom_generate": "org/x"}]
)
def test_a_generation_config_is_judged(
    refusal: Callable[[], str], model: Path, fields: dict[str, Any]
) -> None:
    hostile.change(model / "generation_config.json", **fields)
    assert "generation_config.json" in refusal()


def test_a_model_answers_token_by_token_whatever_its_generation_config_asks(model: Path) -> None:
    hostile.change(
        model / "generation_config.json", num_beams=4, num_beam_groups=2, penalty_alpha=0.6,
        top_k=4, dola_layers="high", constraints=[1],
    )  # fmt: skip
    loaded = weights.load_model(catalog.resolve(str(model)), torch.float32)
    assert str(loaded.generation_config.get_generation_mode()).endswith("GREEDY_SEARCH")
    ids = torch.ones(1, 3, dtype=torch.long)
    assert loaded.generate(input_ids=ids, max_new_tokens=2, do_sample=False).shape[1] <= 5


def test_a_folder_with_an_adapter_beside_the_model_is_refused(
    refusal: Callable[[], str], model: Path
) -> None:
    (model / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": "org/other", "peft_type": "LORA"})
    )
    assert "holds an adapter" in refusal()


def test_a_config_for_an_estimate_is_judged_as_well(tmp_path: Path, model: Path) -> None:
    for fields, _ in CONFIGS[:3]:
        file = tmp_path / "some.json"
        file.write_text(json.dumps({"model_type": "llama"} | fields))
        with pytest.raises(LabError):
            catalog.resolve_config(str(file))
        shutil.copyfile(file, model / "config.json")
        with pytest.raises(LabError):
            catalog.resolve_config(str(model))


def test_every_process_of_the_lab_switches_hub_kernels_off() -> None:
    """Whatever the environment says, and also where the package `kernels` is installed."""
    entries = ["lab.cli", "lab.train.worker", "lab.preflight"]
    code = (
        "import importlib, os, sys; importlib.import_module(sys.argv[1]);"
        "import importlib.util as u; sys.path.insert(0, sys.argv[2]);"
        "print(os.environ['USE_HUB_KERNELS'], os.environ['DISABLE_SAFETENSORS_CONVERSION'], "
        "u.find_spec('kernels'))"
    )
    environment = os.environ | {"USE_HUB_KERNELS": "1", "DISABLE_SAFETENSORS_CONVERSION": "0"}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code, name, "/tmp"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        )
        for name in entries
    ]  # fmt: skip
    for name, child in zip(entries, running, strict=True):
        output, complaint = child.communicate(timeout=120)
        assert output.split() == ["0", "1", "None"], f"{name}: {output} {complaint}"


def test_weights_that_are_quantised_within_a_part_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    text = SimpleNamespace(quantization_config={"quant_method": "awq"})
    config = SimpleNamespace(get_text_config=lambda: text)
    monkeypatch.setattr(base_model.catalog, "resolve", lambda name: None)
    monkeypatch.setattr(base_model.weights, "load_config", lambda source: config)
    with pytest.raises(LabError, match=r"'org/parts' are quantised already \(awq\)"):
        base_model.load_base("org/parts")


@pytest.mark.parametrize(("tokens", "is_refused"), [(8192, False), (8193, True)])
def test_every_token_has_an_embedding(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, tokens: int, is_refused: bool
) -> None:
    monkeypatch.setattr(base_model.weights, "load_tokenizer", lambda source: range(tokens))
    if is_refused:
        with pytest.raises(LabError, match="has 8,193 tokens, but the model only 8,192 embeddings"):
            base_model.load_base(str(tiny_model))
    else:
        assert len(base_model.load_base(str(tiny_model)).tokenizer) == tokens


def test_models_that_differ_in_one_number_are_told_apart(tmp_path: Path) -> None:
    shape = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "vocab_size": 64,
             "num_attention_heads": 2, "num_key_value_heads": 2}  # fmt: skip
    for count in (1, 3):
        file = tmp_path / f"{count}.json"
        file.write_text(json.dumps(shape | {"num_hidden_layers": count}))
        base = base_model.read_config(str(file))
        assert len(base.model.model.layers) == count == base.config.num_hidden_layers


def test_types_are_judged_under_any_name_that_is_loaded(tiny_model: Path) -> None:
    """Some files carry the names of the model within."""
    config = weights.load_config(catalog.resolve(str(tiny_model)))
    stored = folder.stored_tensors(tiny_model, "it")
    within = {name.removeprefix("model."): tensor for name, tensor in stored.items()}
    fit.check(config, within, "within")
    name = Q.removeprefix("model.")
    with pytest.raises(LabError, match=rf"'{name}' has the type I8"):
        fit.check(config, within | {name: Stored("I8", within[name].shape)}, "within")


def test_a_look_at_weights_leaves_the_bars_of_a_library_as_they_were(tiny_model: Path) -> None:
    from transformers.utils import logging

    config = weights.load_config(catalog.resolve(str(tiny_model)))
    before = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.enable_progress_bar()
    try:
        with pytest.raises(LabError, match="do not fit"):
            fit.check(config, {"bars": Stored("F32", (1,))}, "bars")
        assert logging.is_progress_bar_enabled() and logging.get_verbosity() == before[1]
    finally:
        if not before[0]:
            logging.disable_progress_bar()


def test_a_tokenizer_without_padding_pads_with_its_end(model: Path) -> None:
    file = model / "tokenizer_config.json"
    fields = json.loads(file.read_text())
    for key in ("pad_token", "pad_token_id"):
        fields.pop(key, None)
    file.write_text(json.dumps(fields))
    (model / "special_tokens_map.json").unlink(missing_ok=True)
    tokenizer = weights.load_tokenizer(catalog.resolve(str(model)))
    assert tokenizer.pad_token == tokenizer.eos_token
    assert tokenizer.pad_token_id == tokenizer.eos_token_id


@pytest.mark.parametrize(
    ("fields", "says"),
    [({"is_fast": False}, "does not say where"), ({"eos_token_id": None}, "has no end token")],
)
def test_a_tokenizer_that_lacks_what_training_needs_is_refused(
    model: Path, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], says: str
) -> None:
    class Tokenizer(SimpleNamespace):
        def __len__(self) -> int:
            return 3

        def __call__(self, text: str) -> list[int]:
            return [1]

    whole = {"is_fast": True, "eos_token_id": 2, "eos_token": "</s>", "pad_token_id": 2}
    monkeypatch.setattr(
        "transformers.AutoTokenizer.from_pretrained", lambda *_, **__: Tokenizer(**whole | fields)
    )
    with pytest.raises(LabError, match=says):
        weights.load_tokenizer(catalog.resolve(str(model)))


@pytest.mark.parametrize("was_training", [True, False])
def test_a_model_is_as_it_was_after_an_evaluation(was_training: bool) -> None:
    layer = torch.nn.Linear(2, 2).train(was_training)
    with pytest.raises(ValueError, match="on the way"), weights.evaluating(layer):
        assert not layer.training
        raise ValueError("on the way")
    assert layer.training is was_training


def test_weights_of_another_shape_or_name_are_not_read(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    layer = torch.nn.Linear(4, 4)
    for tensors in ({"bias": torch.ones(1)}, {"weight": torch.ones(4, 4), "other": torch.ones(1)}):
        save_file(tensors, tmp_path / "model.safetensors")
        assert weights.has_weights(layer, tmp_path) is ("other" not in tensors)
        with pytest.raises(LabError, match="which this base model does not have"):
            weights.read_weights(layer, tmp_path)
    save_file({"bias": torch.full((4,), 3.0)}, tmp_path / "model.safetensors")
    assert weights.has_weights(layer, tmp_path)
    assert weights.read_weights(layer, tmp_path).bias.tolist() == [3.0] * 4


@pytest.mark.parametrize(
    ("file", "fields"),
    [
        ("config.json", {"use_kernels": False, "fusion_config": None, "configuration_files": []}),
        ("config.json", {"torch_dtype": "torch.bfloat16", "dtype": "float8_e4m3fn"}),
        ("config.json", {"experts_implementation": "grouped_mm", "tokenizer_class": None}),
        ("tokenizer_config.json", {"fast_tokenizer_files": ["tokenizer.4.0.0.json"]}),
        ("tokenizer_config.json", {"tokenizer_class": "LlamaTokenizerFast"}),
        ("generation_config.json", {"eos_token_id": [1, 2], "pad_token_id": None}),
    ],
)
def test_what_harms_nobody_is_taken(model: Path, file: str, fields: dict[str, Any]) -> None:
    hostile.change(model / file, **fields)
    folder.check(model, "it")


def test_an_answer_is_searched_for_token_by_token() -> None:
    names = ("num_beams", "num_beam_groups", "constraints", "force_words_ids", "penalty_alpha",
             "dola_layers", "assistant_early_exit", "prompt_lookup_num_tokens")  # fmt: skip
    config = SimpleNamespace(**dict.fromkeys(names, 4), temperature=0.7)
    weights.settle_generation(SimpleNamespace(generation_config=config))
    assert vars(config) == {**dict.fromkeys(names), "temperature": 0.7}
    weights.settle_generation(SimpleNamespace())


def test_a_quantised_model_stays_where_it_was_built() -> None:
    class Model(SimpleNamespace):
        def to(self, device: str) -> str:
            return device

    quantised = Model(hf_quantizer=object())
    assert weights.on_device(quantised, "cuda") is quantised
    assert weights.on_device(Model(), "cuda") == "cuda"
    layer = SimpleNamespace(support_avx512bf16_for_cpu=True)
    weights.disable_cpu_repacking(SimpleNamespace(modules=lambda: [layer, object()]))
    assert layer.support_avx512bf16_for_cpu is False


def test_what_memory_lacks_is_known_by_its_error() -> None:
    kind = type("OutOfMemoryError", (RuntimeError,), {})
    assert weights.is_out_of_memory(kind("x")) and weights.is_out_of_memory(MemoryError())
    assert not weights.is_out_of_memory(RuntimeError("out of memory"))


@pytest.mark.parametrize(
    ("files", "name", "class_name", "is_without"),
    [
        (["tokenizer.model"], "TokenizersBackend", None, True),
        (["tokenizer.model"], "TokenizersBackend", "TokenizersBackend", False),
        (["tokenizer.model"], "LlamaTokenizer", None, False),
        (["tokenizer.model", "tokenizer.json"], "TokenizersBackend", None, False),
        ([], "TokenizersBackend", None, False),
    ],
)
def test_sentencepiece_alone_is_read_as_sentencepiece(
    tmp_path: Path, files: list[str], name: str, class_name: str | None, is_without: bool
) -> None:
    for file in files:
        (tmp_path / file).touch()
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": class_name}))
    tokenizer = type(name, (), {})()
    assert weights._is_sentencepiece_without_class(tmp_path, tokenizer) is is_without
