"""Freezing, and the hybrids: what trains, what the result holds, and that chat can load it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lab import methods
from lab.chat import generate
from lab.chat import models as chat_models
from lab.chat.settings import GenerationSettings
from lab.data import prepare
from lab.models.empty_model import meta_model
from lab.paths import RunDir
from lab.runs import record_reader
from lab.spec import RunSpec
from lab.train import checkpoint
from lab.train.step import device_batches, evaluation_loss
from tests.answers import check
from tests.conftest import attempt_here, run_here

FEW = {"max_steps": 4, "eval_steps": 2, "save_steps": 2, "sample_steps": 0}


def spec_of(run: RunDir) -> RunSpec:
    from lab.atomic_files import read_object

    return RunSpec.from_stored(read_object(run.spec) or {})


def answers_with_what_was_trained(run: RunDir, at: str = "") -> None:
    """Loaded as chat loads it, the model has the evaluation loss that the run recorded."""
    loaded = chat_models.load(chat_models.parse(f"run:{run.id}{at}"))
    spec = spec_of(run)
    held_out = prepare.prepare(spec, loaded.tokenizer).held_out
    batches = device_batches(held_out, 2, loaded.tokenizer.pad_token_id, torch.device("cpu"))
    loss, _ = evaluation_loss(loaded.model, batches, precision="float32", loss="plain")
    evals = {record["step"]: record["eval/loss"] for record in record_reader.metrics(run, "eval")}
    step = int(at[1:]) if at else max(evals)
    assert loss == pytest.approx(evals[step], abs=1e-5)


def made(make_spec: Callable[..., dict[str, Any]], method: dict[str, Any], **train: Any) -> Any:
    spec = make_spec(method["name"], train=FEW | train)
    spec["method"] = method
    return spec


@pytest.mark.parametrize(
    ("options", "is_trained"),
    [
        ({"train_layers": "last 1"}, lambda n: "layers.1." in n or n == "model.norm.weight"),
        ({"train_layers": "0"}, lambda n: "layers.0." in n),
        ({"freeze": ["embeddings", "norms"]}, lambda n: "norm" not in n and "embed" not in n),
        ({"freeze": [r"re:.*mlp\..*", "head"]}, lambda n: "mlp" not in n and "embed" not in n),
    ],
)
def test_full_trains_what_is_not_frozen(
    make_spec: Callable[..., dict[str, Any]],
    tiny_model: Path,
    options: dict[str, Any],
    is_trained: Callable[[str], bool],
) -> None:
    run = run_here(made(make_spec, {"name": "full", **options}, max_steps=2))
    before, after = (
        load_file(folder / "model.safetensors") for folder in (tiny_model, run.artifact)
    )
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]) != is_trained(name), name
    model = record_reader.last_event(run, "model")
    assert model["trainable"] == sum(t.numel() for n, t in before.items() if is_trained(n))


def test_what_cannot_be_frozen_is_refused(make_spec: Callable[..., dict[str, Any]]) -> None:
    for options, field, words in (
        ({"train_layers": "last 9"}, "method.train_layers", "layers 0 to 1"),
        ({"freeze": ["nonsense"]}, "method.freeze", "names no parameter"),
        ({"freeze": ["re:("]}, "method.freeze", "is not a valid regular expression"),
        ({"freeze": ["re:.*"]}, "method.freeze", "leaves nothing"),
    ):
        (problem,) = check(made(make_spec, {"name": "full", **options}))["problems"]
        assert problem["field"] == field and words in problem["message"]
    spec = made(make_spec, {"name": "top_layers_lora", "top_layers": 2})
    assert "none would be left" in check(spec)["problems"][0]["message"]
    spec = made(make_spec, {"name": "progressive"})
    spec["data"]["eval_fraction"] = 0
    assert "method.trigger" in {problem["field"] for problem in check(spec)["problems"]}
    spec = made(make_spec, {"name": "lora_prompt", "virtual_tokens": 500})
    spec["data"]["packing"] = "on"
    packing, length = check(spec)["problems"]
    assert (packing["field"], length["field"]) == ("data.packing", "data.max_length")
    assert "500 are the method's" in length["message"]


@pytest.mark.parametrize("name", ["top_layers_lora", "lora_prompt", "bottleneck"])
def test_hybrids_answer_as_they_were_trained(
    make_spec: Callable[..., dict[str, Any]], name: str
) -> None:
    run = run_here(made(make_spec, {"name": name}))
    answers_with_what_was_trained(run)
    answers_with_what_was_trained(run, "@2")
    # training on begins with what was trained, and trains as much
    spec = made(make_spec, {"name": name}, max_steps=1, learning_rate=1e-9, eval_steps=0)
    further = run_here(spec | {"init_from_run": f"run:{run.id}"})
    first, last = (record_reader.metrics(one, "eval")[-1]["eval/loss"] for one in (run, further))
    assert last == pytest.approx(first, abs=1e-4)
    trainable = {record_reader.last_event(one, "model")["trainable"] for one in (run, further)}
    assert len(trainable) == 1
    if name == "top_layers_lora":
        weights = load_file(run.artifact / "adapter_model.safetensors")
        opened = [key for key in weights if ".lora_" not in key]
        adapter = [key for key in weights if ".lora_" in key]
        assert opened and all(".layers.1." in key for key in opened)
        assert adapter and all(".layers.0." in key for key in adapter)


def test_new_tokens_get_rows_and_travel_with_the_result(
    make_spec: Callable[..., dict[str, Any]], tiny_model: Path
) -> None:
    run = run_here(made(make_spec, {"name": "lora_embeddings", "new_tokens": ["What is", "<x>"]}))
    old = load_file(tiny_model / "model.safetensors")["model.embed_tokens.weight"]
    weights = load_file(run.artifact / "adapter_model.safetensors")
    new = weights["base_model.model.model.embed_tokens.weight"]
    assert new.shape[0] == old.shape[0] + 2
    assert not torch.equal(new[: len(old)], old)
    loaded = chat_models.load(chat_models.parse(f"run:{run.id}"))
    assert loaded.tokenizer.tokenize("What is 3")[0] == "What is"
    assert loaded.model.get_input_embeddings().weight.shape[0] == len(loaded.tokenizer)
    answers_with_what_was_trained(run)
    answers_with_what_was_trained(run, "@2")
    text = generate.answer(
        loaded,
        chat_models.parse(f"run:{run.id}"),
        [{"role": "user", "content": "What is 1?"}],
        GenerationSettings(max_new_tokens=3),
    )
    assert len(text.token_ids) <= 3


def test_the_soft_prompt_goes_in_once_with_a_cache(
    make_spec: Callable[..., dict[str, Any]],
) -> None:
    run = run_here(made(make_spec, {"name": "lora_prompt", "virtual_tokens": 5}, max_steps=2))
    model = chat_models.load(chat_models.parse(f"run:{run.id}")).model
    ids = torch.arange(5, 13).unsqueeze(0)
    logits = [
        model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=8,
            do_sample=False,
            use_cache=cached,
            output_logits=True,
            return_dict_in_generate=True,
        )
        for cached in (True, False)
    ]
    for first, second in zip(logits[0].logits, logits[1].logits, strict=True):
        assert torch.allclose(first, second, atol=1e-4)
    assert logits[0].sequences.shape == (1, 16)


@pytest.mark.parametrize(
    ("trigger", "optimizer"), [("stall", "adamw"), ("steps", "adamw_in_backward")]
)
def test_progressive_opens_from_the_top_and_resumes_exactly(
    make_spec: Callable[..., dict[str, Any]], trigger: str, optimizer: str
) -> None:
    option = {"min_delta": 10.0} if trigger == "stall" else {"every": 3}
    method = {"name": "progressive", "trigger": trigger, **option}
    spec = made(make_spec, method, max_steps=8, save_steps=2, eval_steps=2, optimizer=optimizer)
    spec["train"] |= {"keep_last": 9, "max_grad_norm": 0}
    whole, broken = run_here(spec), run_here(spec)
    events = record_reader.last_event(whole, "unfrozen")
    opened = {
        name.split(".layers.")[1][0]
        for name in load_file(whole.artifact / "base_weights.safetensors")
    }
    assert opened == {"0", "1"} and events["step"] in (6, 8)
    # back to a checkpoint before the second opening and after the first
    for step in (6, 8):
        folder = broken.checkpoints / f"step-{step}"
        if folder.exists():
            folder.rename(broken.path / f"away-{step}")
    saved = checkpoint.verify(broken.checkpoints / "step-4")
    names = load_file(saved.path / "trainable.safetensors")
    assert any(".layers.1." in name and "lora_" not in name for name in names)
    assert not any(".layers.0." in name and "lora_" not in name for name in names)
    broken.result.unlink()
    broken.process.unlink()
    assert attempt_here(broken) == 0
    assert record_reader.last_event(broken, "plan")["resumed_at"] == 4
    for file in ("lab_adapter_model.safetensors", "base_weights.safetensors"):
        ours, theirs = load_file(whole.artifact / file), load_file(broken.artifact / file)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    losses = [
        {record["step"]: record["train/loss"] for record in record_reader.metrics(run, "train")}
        for run in (whole, broken)
    ]
    assert losses[0] == losses[1]
    answers_with_what_was_trained(broken)
    answers_with_what_was_trained(broken, "@4")


def test_progressive_goes_on_waiting_after_a_resume(
    make_spec: Callable[..., dict[str, Any]], tiny_model: Path
) -> None:
    """Of three evaluations without a gain, one was before the interruption."""
    from lab.methods import Context
    from lab.models import catalog, weights

    source = catalog.resolve(str(tiny_model))
    option = {"name": "progressive", "patience": 3}
    spec = RunSpec.from_stored(make_spec("progressive") | {"method": option})
    method, config = methods.get("progressive"), spec.method_config
    with torch.device("meta"):
        before, after = (
            method.apply(
                meta_model(weights.load_config(source)), config,
                Context(spec, weights.load_tokenizer(source)),
            )
            for _ in range(2)
        )  # fmt: skip
    for step in (1, 2):
        method.on_evaluate(before, config, step, 2.0)
    method.load_state(after, {name: value.cpu() for name, value in method.state(before).items()})
    assert after.progress == before.progress
    assert (after.progress.best, after.progress.waited) == (2.0, 1)


def test_counts_equal_the_closed_form(
    make_spec: Callable[..., dict[str, Any]], tiny_model: Path
) -> None:
    from lab.methods import Context
    from lab.models import catalog, weights

    source = catalog.resolve(str(tiny_model))
    tokenizer = weights.load_tokenizer(source)
    for name in ("top_layers_lora", "lora_embeddings", "lora_prompt", "progressive", "full"):
        method = methods.get(name)
        spec = RunSpec.from_stored(make_spec(name) | {"method": {"name": name}})
        context = Context(spec, tokenizer)
        with torch.device("meta"):
            model = meta_model(weights.load_config(source))
            expected = method.trainable_count(model, spec.method_config, context)
            model = method.apply(model, spec.method_config, context)
        assert sum(w.numel() for w in checkpoint.trainable(model).values()) == expected, name
