"""A GGUF file answers as the model that it was written from, or it is not kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from lab.atomic_files import read_object
from lab.errors import LabError
from lab.export import exports, gguf_file
from lab.paths import RunDir

TEXTS = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "he"]


@pytest.fixture(params=["llama", "qwen2"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A random model with a vocabulary of bytes, one merge and two special tokens."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": 260, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
        "bos_token_id": 257, "eos_token_id": 258, "tie_word_embeddings": request.param == "llama",
    }  # fmt: skip
    place = tmp_path / request.param
    if request.param == "llama":
        model: Any = LlamaForCausalLM(LlamaConfig(**sizes))
    else:
        model = Qwen2ForCausalLM(Qwen2Config(**sizes))
        for layer in model.model.layers:
            torch.nn.init.normal_(layer.self_attn.k_proj.bias)
    for parameter in model.parameters():
        parameter.data *= 3  # attention that is not flat
    model.save_pretrained(place)
    tokenizer = Tokenizer(
        models.BPE({text: number for number, text in enumerate(TEXTS)}, [("h", "e")])
    )
    split = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = split
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.save(str(place / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": "</s>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (place / "tokenizer_config.json").write_text(json.dumps(names))
    return place


def test_every_type_is_read_back_with_the_tokens_and_logits_of_the_folder(
    folder: Path, tmp_path: Path, unsynced: dict[Path, list[str]]
) -> None:
    sizes = []
    for kind in gguf_file.QUANTISATIONS:
        file = tmp_path / f"{kind}.gguf"
        proof = gguf_file.write(folder, file, kind)
        sizes.append(file.stat().st_size)
        assert proof.share_of_spread <= proof.bound and proof.tokens > 100
        assert unsynced[file] == [], "It is on the disk before it has its name."
    assert gguf_file.write(folder, tmp_path / "b.gguf", "F32").share_of_spread < 1e-5
    assert sizes[0] > sizes[1] > sizes[2]
    fields = gguf.GGUFReader(tmp_path / "F16.gguf").fields
    assert fields["tokenizer.ggml.pre"].contents() == "gpt-2"
    assert len(fields["tokenizer.ggml.tokens"].contents()) == 260
    kind = "general.architecture"
    assert {name: fields[f"tokenizer.ggml.{name}"].contents() for name in TOKENS} == TOKENS
    assert fields[kind].contents() == folder.name == fields["general.name"].contents()
    assert fields[f"{folder.name}.context_length"].contents() == 256
    types = fields["tokenizer.ggml.token_type"].contents()
    assert types[256:] == [1, 3, 3, 5], "a merged token, two of control, one that no text gives"
    with pytest.raises(LabError, match=r"F16.* exists\."):
        gguf_file.write(folder, tmp_path / "F16.gguf", "F16")


TOKENS = {"bos_token_id": 257, "eos_token_id": 258, "add_bos_token": False}


def test_a_tokenizer_that_begins_each_text_with_a_token_says_so(
    folder: Path, tmp_path: Path
) -> None:
    """Else llama.cpp leaves out the token that the model was trained behind."""
    file = folder / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 257)]
    )
    tokenizer.save(str(file))
    gguf_file._write(folder, tmp_path / "out.gguf", "F32", "x")
    fields = gguf.GGUFReader(tmp_path / "out.gguf").fields
    assert fields["tokenizer.ggml.add_bos_token"].contents() is True


def test_the_size_of_a_weight_is_that_of_the_files(folder: Path, tmp_path: Path) -> None:
    """A file without its metadata: matrices in the type, vectors in float32."""
    for kind in gguf_file.QUANTISATIONS:
        gguf_file._write(folder, tmp_path / f"{kind}.gguf", kind, "x")
        tensors = gguf.GGUFReader(tmp_path / f"{kind}.gguf").tensors
        matrices = [tensor for tensor in tensors if len(tensor.shape) > 1]
        stored = sum(tensor.n_bytes for tensor in matrices)
        weights = sum(int(tensor.n_elements) for tensor in matrices)
        assert stored / weights == exports.BYTES_PER_WEIGHT[kind], kind


def test_heads_in_another_order_are_refused_and_nothing_is_left(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = () if folder.name == "llama" else ("qwen2",)
    monkeypatch.setattr(gguf_file, "PERMUTED", other)
    with pytest.raises(LabError, match=r"answers differently.*It was not kept"):
        gguf_file.write(folder, tmp_path / "out.gguf", "F32")
    assert list(tmp_path.glob("*gguf*")) == [] and list(tmp_path.glob(".*")) == []


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model_type": "gpt2"}, "architecture is gpt2"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "positions are scaled"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "positions are scaled"),
        ({"attention_bias": True}, "linear layers have biases"),
        ({"mlp_bias": True}, "linear layers have biases"),
        ({"use_sliding_window": True}, "sliding window"),
        ({}, "tokenizer splits text in a way"),
    ],
)
def test_what_is_not_written_is_refused_with_the_converter_of_llama_cpp(
    tiny_model: Path, tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    config = read_object(tiny_model / "config.json") or {}
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(LabError, match=reason) as refused:
        gguf_file.write(tmp_path, tmp_path / "out.gguf")
    assert "convert_hf_to_gguf.py" in str(refused.value.hint)


def test_how_text_is_split_is_named_as_llama_cpp_names_it() -> None:
    level = {"type": "ByteLevel", "use_regex": False}
    digits = {"type": "Digits", "individual_digits": True}
    cases = [
        ({"type": "ByteLevel", "use_regex": True}, "gpt-2"),
        ({"type": "Sequence", "pretokenizers": [digits, level]}, "smollm"),
        ({"type": "Metaspace"}, ""),
        (level, ""),
    ]
    for splitter, name in cases:
        stored = {"model": {"type": "BPE"}, "pre_tokenizer": splitter}
        assert gguf_file.pre_tokenizer(stored) == name
    assert gguf_file.pre_tokenizer({"model": {"type": "Unigram"}}) == ""


def test_a_lora_run_is_merged_on_the_way(trained: list[RunDir], tmp_path: Path) -> None:
    written = gguf_file.of_run(trained[1], tmp_path / "a model.gguf", "F32")
    assert written.proof["merge"]["verdict"] == "equal"
    assert written.proof["share_of_spread"] < 1e-3
    assert written.bytes == (tmp_path / "a model.gguf").stat().st_size
    assert written.commands["llama.cpp"] == f"llama-cli -m '{tmp_path}/a model.gguf' -cnv"
    assert written.commands["Ollama"].startswith(f"echo 'FROM {tmp_path}/a model.gguf' > Modelfile")
    about = exports.predicted_bytes(trained[1], "gguf", "F32")
    assert written.bytes == pytest.approx(about, rel=0.1), "what the disk was asked for"
    assert [file.name for file in tmp_path.iterdir() if "gguf" in file.name] == ["a model.gguf"]
