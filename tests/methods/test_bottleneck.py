"""Bottleneck adapters find their place in architectures that nobody listed for them."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lab import methods
from lab.errors import LabError
from lab.methods import Context
from lab.methods.bottleneck import SETTINGS, BottleneckConfig, bottleneck_size
from lab.methods.parts import bottleneck_modules
from lab.models.decoder_structure import decoder_layers, parse_layers, sublayers
from lab.paths import RunDir
from lab.runs import record_reader
from lab.train.activation_checkpointing import checkpoint_activations

SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# the last five were not looked at when the search was written
KINDS = [
    "llama",
    "qwen3",
    "gemma3_text",
    "mistral",
    "phi3",
    "gpt2",
    "gpt_neox",
    "opt",
    "bloom",
    "falcon",
    "mixtral",
    "olmo2",
]
CONTEXT: Any = Context(SimpleNamespace(train=SimpleNamespace(adapter_precision="float32")))


def tiny(kind: str) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    extra = {
        "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
        "mixtral": {"num_local_experts": 2},
        "gemma3_text": {"sliding_window": 16, "head_dim": 8},
        "qwen3": {"head_dim": 8},
        "falcon": {"new_decoder_architecture": False},
    }
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **SMALL | extra.get(kind, {}))
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_on_every_architecture(kind: str, tmp_path: Path) -> None:
    method = methods.get("bottleneck")
    base = tiny(kind)
    ids = torch.arange(3, 15).view(2, 6)
    with torch.no_grad():
        before = base(ids).logits
    for place in ("houlsby", "pfeiffer", "feed-forward", "parallel"):
        config = BottleneckConfig(kind=place, size=4, activation="gelu")
        model = copy.deepcopy(base)
        assert method.check(model, config, CONTEXT) == []
        expected = method.trainable_count(model, config, CONTEXT)
        model = method.apply(model, config, CONTEXT)
        trainable = {n: w for n, w in model.named_parameters() if w.requires_grad}
        assert sum(w.numel() for w in trainable.values()) == expected
        assert all(".bottleneck." in name for name in trainable)
        with torch.no_grad():
            assert torch.equal(model(ids).logits, before), "zero start: step 0 is the base"
            for adapter in bottleneck_modules.adapters(model).values():
                torch.nn.init.normal_(adapter.up.weight, std=0.3)
            after = model(ids).logits
        assert not torch.allclose(after, before, atol=1e-3)
        grads = []
        for checkpointed in (False, True):
            model.train()
            if checkpointed:
                checkpoint_activations(model)
            model.zero_grad()
            torch.manual_seed(1)  # GPT-2 and OPT have dropout of their own
            model(ids, use_cache=False).logits.square().mean().backward()
            assert all(w.grad is not None and w.grad.abs().sum() > 0 for w in trainable.values())
            grads.append({name: w.grad.clone() for name, w in trainable.items()})
        assert all(torch.allclose(grads[0][name], grads[1][name], atol=1e-6) for name in trainable)
        folder = tmp_path / place
        folder.mkdir()
        method.save(model, folder)
        loaded = method.load(copy.deepcopy(base), folder).eval()
        with torch.no_grad():
            assert torch.equal(loaded(ids).logits, after)
        logits = [
            loaded.generate(
                ids[:1], max_new_tokens=6, min_new_tokens=6, do_sample=False, use_cache=cached
            )
            for cached in (True, False)
        ]
        assert torch.equal(*logits)
        bottleneck_modules.remove(loaded)
        assert loaded.state_dict().keys() == base.state_dict().keys()
        with torch.no_grad():
            assert torch.equal(loaded(ids).logits, before), "taken out, the base is back"


@pytest.mark.parametrize(
    ("width", "options", "size"),
    [(32, {}, 2), (44, {}, 3), (32, {"reduction": 100.0}, 1), (32, {"size": 7}, 7)],
)
def test_the_bottleneck_is_a_share_of_the_width_unless_it_is_given(
    width: int, options: dict[str, Any], size: int
) -> None:
    assert bottleneck_size(width, BottleneckConfig(**options)) == size


def test_an_artifact_of_the_first_version_answers_as_it_did(tmp_path: Path) -> None:
    """Its pfeiffer read the feed-forward part's output before the residual was added."""
    method, base, ids = methods.get("bottleneck"), tiny("llama"), torch.arange(3, 9)[None]
    config = BottleneckConfig(kind="feed-forward", size=4, init="near-zero")
    model = method.apply(copy.deepcopy(base), config, CONTEXT)
    method.save(model, tmp_path)
    settings = json.loads((tmp_path / SETTINGS).read_text())
    (tmp_path / SETTINGS).write_text(json.dumps(settings | {"v": 1, "kind": "pfeiffer"}))
    loaded = method.load(base, tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model(ids).logits)


def test_a_layer_without_attention_is_refused() -> None:
    class Mixer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = torch.nn.Linear(4, 4)

    with pytest.raises(LabError, match="no attention and feed-forward"):
        sublayers(Mixer())
    with pytest.raises(LabError, match="No list of decoder layers"):
        decoder_layers(torch.nn.Linear(2, 2))


def test_the_layers_are_the_outer_list_where_one_holds_the_other() -> None:
    experts = torch.nn.ModuleList([torch.nn.Linear(4, 4)])
    model = torch.nn.ModuleDict({"layers": torch.nn.ModuleList([experts])})
    name, layers = decoder_layers(model)
    assert name == "layers" and layers[0] is experts


@pytest.mark.parametrize(
    ("text", "places"),
    [("all", [0, 1, 2, 3]), ("last 2", [2, 3]), ("first 1", [0]), ("1-2", [1, 2]), (" 3 ", [3])],
)
def test_layers_are_named_in_words(text: str, places: list[int]) -> None:
    assert parse_layers(text, 4) == places


@pytest.mark.parametrize("text", ["", "last 5", "last 0", "4", "2-1", "-1", "last", "one", "1-2-3"])
def test_layers_that_are_not_there(text: str) -> None:
    with pytest.raises(LabError, match="layers 0 to 3"):
        parse_layers(text, 4)


def test_it_trains_packed_and_compiled(work_here: Callable[..., RunDir]) -> None:
    run = work_here(
        "bottleneck",
        data={"packing": "on"},
        train={"learning_rate": 3e-2, "lr_scheduler_type": "constant"},
    )
    losses = [record["train/loss"] for record in record_reader.metrics(run, "train")]
    assert losses[-1] < losses[0] - 0.15
    model = methods.get("bottleneck").apply(tiny("llama"), BottleneckConfig(size=4), CONTEXT)
    ids = torch.arange(3, 9).unsqueeze(0)
    with torch.no_grad():
        plain = model(ids).logits
        for layer in decoder_layers(model)[1]:
            layer.compile(backend="eager")
        assert torch.allclose(model(ids).logits, plain, atol=1e-6)
