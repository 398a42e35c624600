"""A Hub on loopback for each test, a model of a few kB, and a guard against any other name."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.hub import client, credentials
from tests.hub.stand_in import StandIn

NAME = "org/name"
SENTENCES = [
    "What is one plus one? It is two. Sure.",
    "Who are you? I am a small model of a test.",
    "0 1 2 3 4 5 6 7 8 9 plus minus is What It",
]


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """The Hub of this test; the lab reaches it, libraries are told that there is no network."""
    hub = StandIn(tmp_path / "the hub")
    monkeypatch.setenv("HF_ENDPOINT", hub.address)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("LAB_HUB_OFFLINE", "0")
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_CACHE", "HF_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    client._down.clear()
    yield hub
    credentials.adopt(None)
    hub.close()


@pytest.fixture(autouse=True)
def no_other_host(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fails a test in which a name other than loopback was looked up."""
    names: list[str] = []
    look_up = socket.getaddrinfo

    def watched(host: Any, *arguments: Any, **options: Any) -> Any:
        if host not in ("127.0.0.1", "localhost", None):
            names.append(str(host))
            raise socket.gaierror(f"{host} was asked for in a test")
        return look_up(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", watched)
    yield
    assert names == [], "nothing is contacted but the Hub that was named"


@pytest.fixture(scope="session")
def micro_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two layers, 16 wide, with a tokenizer of 300 tokens: 30 kB in all."""
    folder = tmp_path_factory.mktemp("micro") / "model"
    make_micro_model(folder)
    return folder


def make_micro_model(folder: Path, seed: int = 0) -> None:
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    words.train_from_iterator(
        SENTENCES,
        trainers.BpeTrainer(
            vocab_size=300,
            special_tokens=["<s>", "</s>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=320, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=128,
        bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def save_adapter(base: Path, folder: Path, **options: Any) -> None:
    """A LoRA of `base` with weights that are felt, as PEFT writes it."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_pretrained(base)
    model.name_or_path = NAME
    config = peft.LoraConfig(
        **{"r": 4, "task_type": "CAUSAL_LM", "target_modules": ["q_proj", "v_proj"]} | options
    )
    model = peft.get_peft_model(model, config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn_like(weight), alpha=0.5)
    model.save_pretrained(folder)


@pytest.fixture
def hub_spec(make_spec: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """`hub_spec(train={...})`: a LoRA run of four steps on org/name."""

    def make(method: str = "lora", **sections: Any) -> dict[str, Any]:
        train = {"max_steps": 4, "eval_steps": 2, "save_steps": 2} | sections.get("train", {})
        spec = make_spec(method, data=sections.get("data", {}), train=train)
        return spec | {"model": sections.get("model", NAME)}

    return make
