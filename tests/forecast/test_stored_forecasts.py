"""Predictions that are kept: the same question is answered from the disk, another one is not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lab import paths
from lab.forecast import stored_forecasts
from lab.forecast.memory_forecast import TraceOptions
from lab.spec import RunSpec
from tests.answers import estimate


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    from transformers import LlamaConfig

    index = tmp_path_factory.mktemp("kept")
    LlamaConfig(
        vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2,
    ).save_pretrained(index)  # fmt: skip
    return str(index)


def ask(folder: str, device: Any = None, method: Any = "lora", **sections: Any) -> dict[str, Any]:
    data = {"max_length": 128, **sections.get("data", {})}
    train = {"batch_size": 4, "activation_checkpointing": "off", **sections.get("train", {})}
    value = {"model": folder, "method": method, "data": data, "train": train}
    answer = estimate(value, device or {"kind": "cuda"})
    assert answer["source"] == "shadow", answer["notes"]
    return answer


OTHERS: list[dict[str, Any]] = [
    {"data": {"max_length": 256}},
    {"data": {"packing": "on"}},
    {"train": {"optimizer": "sgd"}},
    {"train": {"precision": "float32"}},
    {"train": {"gradient_accumulation_steps": 4}},
    {"method": {"name": "lora", "rank": 64}},
]
KEPT_LONGER = {"train": {"keep_last": 9, "max_steps": 10_000}}


def test_another_question_gets_an_answer_of_its_own(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ask(folder)
    answers = [ask(folder, **changes) for changes in OTHERS]
    for changes, answer in zip(OTHERS, answers, strict=True):
        assert answer["at_peak"] != first["at_peak"], f"{changes} changes the memory."

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("It was answered before.")

    monkeypatch.setattr(stored_forecasts, "predict_memory", never)
    again = [ask(folder), *[ask(folder, **changes) for changes in OTHERS]]
    for before, after in zip([first, *answers], again, strict=True):
        for figure in ("peak_bytes", "at_peak", "phases", "disk", "launches"):
            assert before[figure] == after[figure]
    longer = ask(folder, **KEPT_LONGER)  # what lies on the disk changes nothing in memory
    assert longer["disk"] != first["disk"] and longer["at_peak"] == first["at_peak"]


def test_a_copy_in_another_folder_is_the_same_model(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    first = ask(folder)
    with monkeypatch.context() as patch:
        patch.setattr(stored_forecasts, "predict_memory", None)
        assert ask(str(tmp_path / "copy"))["phases"] == first["phases"]
    config = json.loads((tmp_path / "copy" / "config.json").read_text())
    (tmp_path / "copy" / "config.json").write_text(json.dumps({**config, "hidden_size": 128}))
    assert ask(str(tmp_path / "copy"))["peak_bytes"] > first["peak_bytes"]


def test_whether_it_fits_is_asked_anew_of_each_device(folder: str) -> None:
    answer = ask(folder)
    needed = max(answer["peak_bytes"], answer["reserved_bytes"])
    for size, fits in ((needed - 1, False), (needed, True), (needed - 1, False)):
        assert ask(folder, {"memory_bytes": size})["fits"] is fits
    assert list((paths.home() / "cache" / "memory").iterdir()), "Kept on the disk."


def test_a_damaged_answer_is_made_again(folder: str) -> None:
    first = ask(folder)
    (file,) = (paths.home() / "cache" / "memory").iterdir()
    for text in ("{", "[]", '{"peak_bytes": 1}'):
        file.write_text(text)
        assert ask(folder)["peak_bytes"] == first["peak_bytes"]


def test_a_processor_takes_more_than_its_tensors_and_a_gpu_does_not(folder: str) -> None:
    """Every part counted by the tracker; what is added is cuBLAS's workspace on a GPU, and on a
    processor the libraries and a third for copies and holes."""
    gpu = ask(folder)
    assert gpu["at_peak"]["workspace"] == 2 * 32 * 2**20
    cpu = ask(folder, {"kind": "cpu"})
    tensors = sum(size for part, size in cpu["at_peak"].items() if part != "workspace")
    assert cpu["peak_bytes"] == pytest.approx(900e6 + 1.3 * tensors, rel=1e-3)
    assert gpu["reserved_bytes"] >= gpu["peak_bytes"], "The allocator holds what it gives out."


def test_logits_that_are_changed_after_the_head_take_the_plain_loss(tmp_path: Path) -> None:
    from transformers import Gemma2Config

    shape: dict[str, Any] = {
        "vocab_size": 2048, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    }  # fmt: skip
    Gemma2Config(**shape, final_logit_softcapping=30.0).save_pretrained(tmp_path / "capped")
    Gemma2Config(**shape, final_logit_softcapping=None).save_pretrained(tmp_path / "free")
    capped, free = (ask(str(tmp_path / name)) for name in ("capped", "free"))
    assert capped["settings"]["loss"] == "plain" and free["settings"]["loss"] == "fused"
    assert "plain loss" in " ".join(capped["notes"]) and "plain" not in " ".join(free["notes"])
    assert capped["bytes"]["loss"] > 1.2 * free["bytes"]["loss"]


@pytest.mark.parametrize("kind", [NotImplementedError, RuntimeError])
def test_a_step_that_cannot_be_traced_is_said(
    folder: str, monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    """What only tracing cannot do leaves a figure that never says "fits"; what the step itself
    raises would end the run too, and is a problem of the method."""
    from lab.forecast.trace import layer_repetition

    def fail(*_: Any, **__: Any) -> None:
        raise kind("an odd layer")

    monkeypatch.setattr(layer_repetition, "step", fail)
    value = {"model": folder, "method": "lora", "data": {"max_length": 99}}
    answer = estimate(value, {"kind": "cuda"})
    if kind is RuntimeError:
        (problem,) = answer["problems"]
        assert problem["field"] == "method"
        assert "its training step fails (RuntimeError: an odd layer)" in problem["message"]
        return
    assert answer["source"] == "formula" and answer["fits"] is None
    assert "an odd layer" in " ".join(answer["notes"])


def test_a_number_of_layers_that_is_given_stays(tmp_path: Path) -> None:
    from transformers import LlamaConfig

    LlamaConfig(
        vocab_size=256, hidden_size=64, intermediate_size=256, num_hidden_layers=6,
        num_attention_heads=4, num_key_value_heads=2,
    ).save_pretrained(tmp_path)  # fmt: skip
    rows = {"batch_size": 16, "activation_checkpointing": "on"}

    def ask_for(device: dict[str, Any], **train: Any) -> dict[str, Any]:
        chosen = {"data": {"max_length": 256}, "train": rows | train}
        return estimate({"model": str(tmp_path), "method": "lora", **chosen}, device)

    three = ask_for({"kind": "cuda"}, checkpointed_layers=3)["peak_bytes"]
    room = {"memory_bytes": int(three / 0.93)}  # three leave the reserve free; none would not fit
    answer = ask_for(room, activation_checkpointing="auto", checkpointed_layers=6)
    assert answer["settings"]["activation_checkpointing"] == "on" and answer["fits"]
    assert answer["settings"]["checkpointed_layers"] == 6, "Six were asked for, though three do."


def test_the_forgetting_probe_makes_another_question() -> None:
    """It holds whole logits, which may be the peak."""
    config, options = SimpleNamespace(to_dict=dict), TraceOptions(on_gpu=True)
    keys = {
        stored_forecasts.key(
            config, RunSpec.from_json({"train": {"forgetting_probe": probe}}), options
        )
        for probe in ("on", "off")
    }
    assert len(keys) == 2


QUESTIONS: list[dict[str, Any]] = [
    {}, {"method": {"name": "lora", "rank": 3}}, {"data": {"max_length": 99}},
    *({"train": changes} for changes in (
        {"batch_size": 5}, {"gradient_accumulation_steps": 2}, {"loss_implementation": "plain"},
        {"max_grad_norm": 0.0}, {"activation_checkpointing": "on"}, {"weight_decay": 0.5},
        {"activation_checkpointing": "on", "checkpointed_layers": 1}, {"precision": "mixed"},
        {"adapter_precision": "bfloat16"}, {"optimizer": "sgd"}, {"momentum": 0.5},
        {"forgetting_probe": "on"},
    )),
]  # fmt: skip


def test_all_that_changes_the_memory_makes_another_question(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def key(spec: dict[str, Any] | None = None, layers: int = 2, **options: Any) -> str:
        config = SimpleNamespace(to_dict=lambda: {"layers": layers})
        traced = TraceOptions(**{"on_gpu": True, **options})
        return stored_forecasts.key(config, RunSpec.from_json(spec or {}), traced)

    keys = [key(spec) for spec in QUESTIONS]
    keys += [key(layers=3), key(on_gpu=False), key(packed=True), key(traced=False), key(whole=True)]
    monkeypatch.setattr(stored_forecasts, "_code", lambda: "a later lab")
    keys.append(key())
    monkeypatch.setattr(stored_forecasts.importlib.metadata, "version", lambda name: "9")
    keys.append(key())
    assert len(set(keys)) == len(keys), "no two of them have the same answer"
    later = {"train": {"learning_rate": 0.5, "max_steps": 7, "seed": 3, "keep_last": 9}}
    assert key(later) == key(), "what changes no memory is no other question"
