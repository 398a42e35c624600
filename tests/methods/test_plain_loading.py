"""What a result is without the lab: PEFT and transformers load all of it, or refuse it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from lab import methods
from lab.methods import Context
from lab.methods.parts import lora_with_base
from lab.methods.parts.adapter_files import CONFIG, OWN_CONFIG, OWN_WEIGHTS, WEIGHTS
from lab.spec import RunSpec
from lab.train import checkpoint
from tests.methods import tiny

IDS = torch.arange(3, 15).view(2, 6)
OWN = {"lora_prompt", "bottleneck", "progressive opened"}  # what PEFT cannot express
NAMES = [
    *(method.name for method in methods.all_methods() if not method.load_kwargs(method.config())),
    "progressive opened",
]
OPTIONS: dict[str, dict[str, Any]] = {
    "lora": {"train_also": ["head"]},
    "oft": {"block_size": 8},
    "lora_embeddings": {"new_tokens": ["<x>", "<y>"]},
    "trainable_tokens": {"tokens": ["w3", "w7"]},
    "bottleneck": {"size": 4},
    "adalora": {"rank": 4, "target_rank": 2},
}


def trained(name: str, kind: str) -> tuple[Any, Any, Any]:
    """(method, the base before anything, a model all of whose trained weights have moved)."""
    name, _, opened = name.partition(" ")
    method = methods.get(name)
    spec = RunSpec.from_json({"method": {"name": name, **OPTIONS.get(name, {})}})
    config, context = spec.method_config, Context(spec, tiny.make_tokenizer())
    base = tiny.make_model(kind)
    method.extend_tokenizer(context.tokenizer, config)
    model = copy.deepcopy(base)
    method.prepare(model, config, context)
    model = method.apply(model, config, context)
    if opened:
        method.on_optimizer_step(model, config, 1)
        lora_with_base.unfreeze_layers(model, [1])
    torch.manual_seed(5)
    with torch.no_grad():
        for weight in checkpoint.trainable(model).values():
            weight.add_(0.1 * torch.randn(weight.shape))
    return method, base, model.eval()


def answers(model: Any) -> torch.Tensor:
    with torch.no_grad():
        logits = model.eval()(input_ids=IDS, use_cache=False).logits
    return logits[:, -IDS.shape[1] :]


@pytest.mark.every_method
@pytest.mark.parametrize("kind", ["llama", "qwen3"])
@pytest.mark.parametrize("name", NAMES)
def test_a_result_is_loaded_whole_or_refused(name: str, kind: str, tmp_path: Path) -> None:
    import peft
    from transformers import AutoModelForCausalLM

    method, base, model = trained(name, kind)
    expected = answers(model)
    assert not torch.allclose(expected[..., :90], answers(base)[..., :90], atol=1e-2)
    method.save(model, tmp_path)
    lab_base = copy.deepcopy(base)
    assert torch.allclose(answers(method.load(lab_base, tmp_path)), expected, atol=2e-5)
    method.check_saved(tiny.make_empty(kind), tmp_path)
    if name in OWN:
        assert not (tmp_path / CONFIG).exists() and not (tmp_path / WEIGHTS).exists()
        with pytest.raises(ValueError, match="Can't find 'adapter_config"):
            peft.PeftModel.from_pretrained(base, str(tmp_path))
        with pytest.raises((OSError, ValueError), match="config"):
            AutoModelForCausalLM.from_pretrained(tmp_path)
        return
    if method.saves_whole_model:
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    else:
        if name == "lora_embeddings":
            base.resize_token_embeddings(expected.shape[-1])
        loaded = peft.PeftModel.from_pretrained(base, str(tmp_path))
    assert torch.allclose(answers(loaded), expected, atol=2e-5), f"{name}: PEFT loads the whole."


def test_without_room_for_new_tokens_peft_refuses_the_result(tmp_path: Path) -> None:
    import peft

    method, base, model = trained("lora_embeddings", "llama")
    method.save(model, tmp_path)
    with pytest.raises(RuntimeError, match="size mismatch"):
        peft.PeftModel.from_pretrained(base, str(tmp_path))


@pytest.mark.parametrize("name", ["top_layers_lora", "progressive opened", "lora_prompt"])
def test_a_result_of_an_older_lab_still_loads(name: str, tmp_path: Path) -> None:
    """PEFT's names for the adapter, and the changed weights of the base in a file beside it."""
    from safetensors.torch import load_file, save_file

    method, base, model = trained(name, "llama")
    expected = answers(model)
    method.save(model, tmp_path)
    if (tmp_path / OWN_CONFIG).exists():
        (tmp_path / OWN_CONFIG).rename(tmp_path / CONFIG)
        (tmp_path / OWN_WEIGHTS).rename(tmp_path / WEIGHTS)
    else:
        weights = load_file(tmp_path / WEIGHTS)
        adapter = {key: tensor for key, tensor in weights.items() if ".lora_" in key}
        opened = {
            lora_with_base.base_name(key): tensor
            for key, tensor in weights.items()
            if key not in adapter
        }
        save_file(adapter, tmp_path / WEIGHTS)
        save_file(opened, tmp_path / lora_with_base.BASE_WEIGHTS)
        config = tmp_path / CONFIG
        text = config.read_text()
        start = text.index('"modules_to_save"')
        end = text.index("]", start) + 1
        config.write_text(text[:start] + '"modules_to_save": null' + text[end:])
    assert torch.allclose(answers(method.load(base, tmp_path)), expected, atol=2e-5)
