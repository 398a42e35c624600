"""Adapters that PEFT has written, of the Hub and in folders, as models of a chat."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lab import cli, methods
from lab.chat import adapters, client
from lab.chat import models as chat_models
from lab.chat.engine.loaded_models import LoadedModels
from lab.chat.generate import answer
from lab.chat.settings import GenerationSettings
from lab.errors import LabError
from lab.methods.parts.peft_method import PeftMethod
from tests.answers import check
from tests.hub.conftest import NAME, save_adapter
from tests.hub.stand_in import StandIn
from tests.models import hostile

ADAPTER = "org/adapter"
ASK = [{"role": "user", "content": "What is one?"}]


@pytest.fixture
def adapter(micro_model: Path, tmp_path: Path) -> Path:
    """An adapter for org/name, with pickles lying beside it."""
    folder = tmp_path / "adapter"
    save_adapter(micro_model, folder)
    hostile.plant(folder, tmp_path / "a pickle was read")
    return folder


@pytest.fixture
def both(stand_in: StandIn, micro_model: Path, adapter: Path) -> StandIn:
    stand_in.commit(NAME, micro_model)
    stand_in.commit(ADAPTER, adapter)
    return stand_in


def change(folder: Path, **fields: Any) -> None:
    hostile.change(folder / "adapter_config.json", **fields)


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        values: torch.Tensor = model(input_ids=torch.arange(8)[None]).logits
    return values


def test_adapters_that_lie_whole_in_the_cache_are_offered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapters.settings, "cache_folder", lambda: tmp_path)
    weights, config = "adapter_model.safetensors", "adapter_config.json"
    for repository, files in (
        ("org--whole", (weights, config)), ("org--weights", (weights,)), ("org--config", (config,)),
        ("org--a b", (weights, config)),
    ):  # fmt: skip
        folder = tmp_path / f"models--{repository}" / "snapshots" / "0123"
        folder.mkdir(parents=True)
        for file in files:
            (folder / file).touch()
    assert adapters.cached() == {"adapter:org/whole": "whole"}


def test_an_adapter_of_the_hub_answers_beside_its_base(
    both: StandIn, micro_model: Path, adapter: Path, tmp_path: Path, capsys: Any
) -> None:
    names = [f"base:{NAME}", f"adapter:{ADAPTER}"]
    code = cli.main(["chat", *names, "--prompt", "What is one?", "--max-new-tokens", "4", "--json"])
    told = capsys.readouterr()
    assert code == 0, told.err
    assert f"Downloaded {ADAPTER}." in told.err and f"Downloaded {NAME}." in told.err
    base, own = json.loads(told.out)["answers"]
    assert base["receipt"]["prompt"] == own["receipt"]["prompt"]
    proof = own["receipt"]["proof"]
    assert proof["problems"] == [] and proof["tensors"] == proof["tensors_loaded"] == 8
    assert proof["base_difference"] == 0.0 and proof["effect"] > 0.01
    assert own["receipt"]["weights"].keys() == {"adapter_model.safetensors"}
    plain = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(micro_model), adapter
    ).eval()
    ids = AutoTokenizer.from_pretrained(micro_model)(
        own["receipt"]["prompt"], add_special_tokens=False, return_tensors="pt"
    )["input_ids"]
    by_peft = plain.generate(input_ids=ids, max_new_tokens=4, do_sample=False)[0, ids.shape[1] :]
    assert own["token_ids"] == by_peft.tolist(), "the tokens are those of plain PEFT"
    for name in hostile.PICKLES:
        assert not both.requests("GET", name), "a pickle was downloaded"
    assert not (tmp_path / "a pickle was read").exists()


def test_a_folder_is_an_adapter_too_and_another_base_can_be_named(
    both: StandIn, adapter: Path, micro_model: Path
) -> None:
    change(adapter, base_model_name_or_path="/content/drive/base")
    with pytest.raises(LabError, match="was trained on '/content/drive/base', which is not here"):
        chat_models.parse(f"adapter:{adapter}")
    named = chat_models.parse(f"adapter:{adapter}@{micro_model}")
    assert named.base == str(micro_model)
    models = LoadedModels()
    before = logits(models.get(chat_models.parse(f"base:{micro_model}")).model)
    loaded = models.get(named)
    plain = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(micro_model), adapter
    ).eval()
    assert torch.allclose(logits(loaded.model), logits(plain), atol=1e-5)
    base = models.get(chat_models.parse(f"base:{micro_model}"))
    assert torch.equal(logits(base.model), before), "the base is as it was"
    assert both.requests("GET") == [], "a folder needs no Hub"
    save_adapter(micro_model, adapter, r=8)
    assert not models.holds(chat_models.parse(named.name)), "other weights are loaded anew"


def test_trained_biases_leave_the_shared_base_alone(micro_model: Path, tmp_path: Path) -> None:
    """PEFT writes biases into the base's own tensors."""
    from transformers import GPT2Config, GPT2LMHeadModel

    base = tmp_path / "with biases"
    shutil.copytree(micro_model, base, ignore=shutil.ignore_patterns("*config.json", "*.safe*"))
    shutil.copyfile(micro_model / "tokenizer_config.json", base / "tokenizer_config.json")
    GPT2LMHeadModel(
        GPT2Config(vocab_size=320, n_embd=16, n_layer=1, n_head=2, n_positions=128)
    ).save_pretrained(base)
    folder = tmp_path / "adapter"
    save_adapter(base, folder, target_modules=["c_attn"], bias="all", fan_in_fan_out=True)
    models = LoadedModels()
    plain = chat_models.parse(f"base:{base}")
    before = logits(models.get(plain).model)
    loaded = models.get(chat_models.parse(f"adapter:{folder}@{base}"))
    assert loaded.proof is not None and loaded.proof.problems == []
    by_peft = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder)
    assert torch.allclose(logits(loaded.model), logits(by_peft.eval()), atol=1e-5)
    assert torch.equal(logits(models.get(plain).model), before)


def test_the_adapters_own_tokenizer_and_template_are_used(
    both: StandIn, adapter: Path, micro_model: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(micro_model)
    tokenizer.chat_template = "{% for m in messages %}Q: {{ m.content }}\nA:{% endfor %}"
    tokenizer.save_pretrained(adapter)
    (adapter / "config.json").write_text('{"auto_map": {"AutoConfig": "evil.Config"}}')
    first = both.commit(ADAPTER, adapter)
    base, named = chat_models.with_shared_template(
        [chat_models.parse(f"base:{NAME}"), chat_models.parse(f"adapter:{ADAPTER}")]
    )
    models = LoadedModels()
    for ref in (base, named):
        said = answer(models.get(ref), ref, ASK, GenerationSettings(max_new_tokens=1))
        assert said.receipt.prompt == "Q: What is one?\nA:", "the base reads the same"
    assert not both.requests("GET", f"{ADAPTER}/{first}/config.json"), "nobody reads it"
    tokenizer.add_tokens([f"<more {number}>" for number in range(30)])
    tokenizer.save_pretrained(adapter)
    both.commit(ADAPTER, adapter)
    longer = chat_models.parse(f"adapter:{ADAPTER}")
    assert not models.holds(longer), "the branch has moved on"
    with pytest.raises(LabError, match="and its base has rows for 320"):
        models.get(longer)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("adapter:", "is not a model"),
        ("adapter:a b", "names no adapter"),
        ("adapter:org/nothing", "is not on the Hub|was not found|cannot be found"),
        (f"adapter:{NAME}", "is not an adapter: it has no adapter_config.json"),
        ("adapter:./nowhere", "no adapter_config.json in './nowhere'"),
        (f"adapter:{ADAPTER}@builtin:what", "Unknown model 'builtin:what'"),
        (f"adapter:{ADAPTER}#v9", "has no such branch, tag or commit"),
    ],
)
def test_names_that_match_nothing_are_refused(both: StandIn, name: str, message: str) -> None:
    with pytest.raises(LabError, match=message):
        chat_models.parse(name)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"peft_type": "MISS"}, "is an adapter of the type MISS"),
        ({"base_model_name_or_path": None}, "does not name its base model"),
        ({"base_model_name_or_path": "/etc"}, "was trained on '/etc', which is not here"),
        ({"base_model_name_or_path": "../x"}, "was trained on '../x', which is not here"),
    ],
)
def test_a_config_that_leads_nowhere_is_told(
    both: StandIn, adapter: Path, fields: dict[str, Any], message: str
) -> None:
    change(adapter, **fields)
    both.commit(ADAPTER, adapter)
    with pytest.raises(LabError, match=message):
        chat_models.parse(f"adapter:{ADAPTER}")
    assert not both.requests("GET", "adapter_model.safetensors"), "only the config was read"


def test_an_adapter_of_the_hub_leads_to_no_folder(
    both: StandIn, adapter: Path, micro_model: Path
) -> None:
    """A path in it is one of somebody else's machine, also where this one has it."""
    change(adapter, base_model_name_or_path=str(micro_model))
    assert chat_models.parse(f"adapter:{adapter}").base == str(micro_model), "one's own may"
    both.commit(ADAPTER, adapter)
    with pytest.raises(LabError, match="which is not here"):
        chat_models.parse(f"adapter:{ADAPTER}")


def test_an_adapter_of_pickles_is_refused(both: StandIn, adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").unlink()
    both.commit(ADAPTER, adapter)
    with pytest.raises(LabError, match=r"has no adapter_model.safetensors: it holds only .*\.bin"):
        chat_models.parse(f"adapter:{ADAPTER}")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"auto_mapping": None, "layers_to_transform": [0]}, "sets 'layers_to_transform'"),
        ({"r": 8}, "and .* is needed"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused_when_it_is_loaded(
    both: StandIn, adapter: Path, fields: dict[str, Any], message: str
) -> None:
    change(adapter, **fields)
    both.commit(ADAPTER, adapter)
    with pytest.raises(LabError, match=message):
        LoadedModels().get(chat_models.parse(f"adapter:{ADAPTER}"))


def test_the_check_names_the_way_that_works(
    both: StandIn, hub_spec: Callable[..., dict[str, Any]]
) -> None:
    (problem,) = check(hub_spec(model=ADAPTER))["problems"]
    assert f"is an adapter for {NAME}" in problem["message"]
    assert f"add adapter:{ADAPTER} in Chat" in problem["message"]
    assert chat_models.parse(f"adapter:{ADAPTER}").base == NAME


@pytest.mark.every_method
def test_every_method_of_peft_has_its_class() -> None:
    own = {method.peft_class for method in methods.all_methods() if isinstance(method, PeftMethod)}
    assert own == set(adapters.PEFT_CLASSES.values())
    for peft_type, name in adapters.PEFT_CLASSES.items():
        assert peft.PEFT_TYPE_TO_CONFIG_MAPPING[peft_type] is getattr(peft, name)


def test_a_fetched_adapter_is_offered_and_needs_no_hub(both: StandIn) -> None:
    name = f"adapter:{ADAPTER}"
    assert name not in chat_models.available()
    LoadedModels().get(chat_models.parse(name))
    assert chat_models.available()[name] == "adapter"
    both.close()
    named = chat_models.parse(name)
    assert LoadedModels().get(named).proof is not None
    assert client.record() is None
