"""What a repository is, is told by its list of files; each kind has its own sentence and way out.
Tokenizers as people have them."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lab.errors import LabError
from lab.models import catalog, file_list, hub, weights
from tests.answers import check
from tests.hub.conftest import NAME, SENTENCES
from tests.hub.stand_in import StandIn

CONFIG = json.dumps({"model_type": "llama", "hidden_size": 16}).encode()
TOKENIZER = b"{}"


def refusal(stand_in: StandIn, files: dict[str, bytes]) -> LabError:
    stand_in.commit(NAME, files)
    with pytest.raises(LabError) as raised:
        hub.stored_tensors(hub.pin(catalog.resolve(NAME)))
    return raised.value


@pytest.mark.parametrize(
    ("files", "message", "way_out"),
    [
        ({"pytorch_model.bin": b"x"}, "only pytorch_model.bin, a format that can run code",
         f"{NAME}#refs/pr/NUMBER"),
        ({"model.Q4_K_M.gguf": b"x"}, "holds only GGUF files", "the model that they"),
        ({"adapter_config.json": b'{"base_model_name_or_path": "base/one"}',
          "adapter_model.safetensors": b"x"},
         "is an adapter for base/one, and not a model by itself",
         "To talk to the adapter, add adapter:org/name in Chat. To train on with it, merge it"),
        ({"adapter_config.json": b"[]", "adapter_model.bin": b"x"},
         "is an adapter for a base that it does not name", "Choose its base model."),
        ({"tf_model.h5": b"x"}, "only those of another framework (tf_model.h5)", "original model"),
        ({}, "the repository holds no model", "its upload has ended"),
        ({"unet/model.safetensors": b"x"}, "the repository holds no model", "its upload has ended"),
        ({"model.safetensors": b"x", "tokenizer.json": None},
         "has no tokenizer", "copy both into one folder"),
    ],
)  # fmt: skip
def test_each_kind_has_its_own_sentence(
    stand_in: StandIn, files: dict[str, Any], message: str, way_out: str
) -> None:
    listed = {"config.json": CONFIG, "tokenizer.json": TOKENIZER} | files
    error = refusal(stand_in, {name: data for name, data in listed.items() if data is not None})
    assert message in error.message and way_out in error.hint
    fetched = {line.path.rpartition("/")[2] for line in stand_in.requests("GET", "/cdn/")}
    assert not fetched & {"pytorch_model.bin", "model.Q4_K_M.gguf", "tf_model.h5"}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"model.gguf": b"x"}, "holds only GGUF files"),
        ({"adapter_config.json": b'{"base_model_name_or_path": "base/one"}'}, "is an adapter for"),
        ({"model_index.json": b"{}", "unet/model.safetensors": b"x"}, "is a pipeline of diffusers"),
        ({"README.md": b"x"}, "has no config.json"),
    ],
)
def test_without_a_config_a_check_says_what_it_is(
    stand_in: StandIn,
    hub_spec: Callable[..., dict[str, Any]],
    files: dict[str, bytes],
    message: str,
) -> None:
    stand_in.commit(NAME, files)
    (problem,) = check(hub_spec())["problems"]
    assert problem["field"] == "model" and message in problem["message"]


@pytest.fixture
def changed(stand_in: StandIn, micro_model: Path, tmp_path: Path) -> Callable[..., None]:
    """Commit the micro model with other fields in its config."""

    def commit(**fields: Any) -> None:
        folder = tmp_path / "changed"
        shutil.copytree(micro_model, folder, dirs_exist_ok=True)
        config = json.loads((folder / "config.json").read_text()) | fields
        (folder / "config.json").write_text(json.dumps(config))
        stand_in.commit(NAME, folder)

    return commit


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "no_such_kind"}, "has the unknown architecture 'no_such_kind'"),
        ({"model_type": "no_such_kind", "transformers_version": "99.1.0"},
         "needs a newer transformers: its architecture 'no_such_kind' was written by version 99.1"),
        ({"model_type": "no_such_kind", "transformers_version": "what"}, "unknown architecture"),
        ({"auto_map": {"AutoModelForCausalLM": "code.Model"}}, "needs code of its own"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}},
         "are quantised already (gptq), and cannot be trained"),
        ({"num_hidden_layers": 10**6}, "num_hidden_layers is 1,000,000"),
    ],
)  # fmt: skip
def test_a_config_that_cannot_be_trained_is_told(
    changed: Callable[..., None], hub_spec: Callable[..., dict[str, Any]],
    fields: dict[str, Any], message: str,
) -> None:  # fmt: skip
    changed(**fields)
    (problem,) = check(hub_spec())["problems"]
    assert problem["field"] == "model" and message in problem["message"]


@pytest.mark.parametrize("names_class", [False, True])
def test_a_repository_with_a_sentencepiece_model_alone_works(
    stand_in: StandIn, micro_model: Path, tmp_path: Path, names_class: bool
) -> None:
    import sentencepiece

    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 50), model_writer=written, vocab_size=300,
        model_type="bpe", byte_fallback=True, unk_id=0, bos_id=1, eos_id=2, minloglevel=2,
    )  # fmt: skip
    folder = tmp_path / "sentencepiece"
    shutil.copytree(micro_model, folder, ignore=shutil.ignore_patterns("tokenizer*"))
    (folder / "tokenizer.model").write_bytes(written.getvalue())
    if names_class:
        config = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>"}
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    stand_in.commit(NAME, folder)
    tokenizer = weights.load_tokenizer(catalog.resolve(NAME))
    own = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
    text = "What is one? I am two."
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids == own.encode(text), "the tokens are sentencepiece's own"
    assert tokenizer.decode(ids) == text and tokenizer.eos_token == "</s>"


def test_a_tiktoken_file_can_be_read() -> None:
    import tiktoken
    from transformers.utils import is_sentencepiece_available, is_tiktoken_available

    assert is_tiktoken_available() and is_sentencepiece_available() and tiktoken.Encoding


def test_the_proposal_to_look_for_is_one_of_the_repository_itself() -> None:
    with pytest.raises(LabError) as refused:
        file_list.check_weights(["pytorch_model.bin"], f"{NAME}#v1", lambda: "")
    assert refused.value.hint.endswith(f"which is named {NAME}#refs/pr/NUMBER.")


@pytest.mark.parametrize(
    "file",
    ["tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json",
     "sentencepiece.bpe.model", "qwen.tiktoken"],
)  # fmt: skip
def test_every_kind_of_tokenizer_is_known_by_its_file(file: str) -> None:
    file_list.check_weights(["config.json", "model.safetensors", file], NAME, lambda: "")
    with pytest.raises(LabError, match="has no tokenizer"):
        file_list.check_weights(["model.safetensors", f"sub/{file}"], NAME, lambda: "")
