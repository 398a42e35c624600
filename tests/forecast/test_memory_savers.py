"""The changes that are proposed where a run does not fit."""

from __future__ import annotations

from typing import Any

from lab.forecast import memory_savers


def spec(method: str = "full", length: int = 512, **train: Any) -> dict[str, Any]:
    chosen = {
        "loss_implementation": "plain", "activation_checkpointing": "off", "batch_size": 4,
        "gradient_accumulation_steps": 2, "precision": "float32", "learning_rate": 1e-5,
    }  # fmt: skip
    return {
        "method": {"name": method},
        "data": {"max_length": length},
        "train": {**chosen, **train},
    }


def changed(value: dict[str, Any], on_gpu: bool = True) -> dict[str, Any]:
    """{title's first word: (the spec with the change, whether the batch stays)}."""
    return {
        fix.title.split()[0]: (fix.apply(value), fix.keeps_effective_batch)
        for fix in memory_savers.candidates(value, on_gpu=on_gpu)
    }


def test_half_the_rows_twice_as_often_are_the_same_step() -> None:
    halved, keeps = changed(spec())["Halve"]
    assert (halved["train"]["batch_size"], halved["train"]["gradient_accumulation_steps"]) == (2, 4)
    assert keeps, "Eight rows a step before and after."
    odd, keeps = changed(spec(batch_size=3, gradient_accumulation_steps=1))["Halve"]
    rows = odd["train"]["batch_size"] * odd["train"]["gradient_accumulation_steps"]
    assert rows == 3 and keeps, "Three passes of one row."
    odd, keeps = changed(spec(batch_size=5, gradient_accumulation_steps=1))["Halve"]
    rows = odd["train"]["batch_size"] * odd["train"]["gradient_accumulation_steps"]
    assert rows == 6 and not keeps, "Five rows cannot be made of passes of two."
    assert "Halve" not in changed(spec(batch_size=1))


def test_each_change_changes_what_it_says_and_nothing_else() -> None:
    value = spec()
    changes = changed(value)
    assert value == spec(), "The spec that is asked about stays as it is."
    assert changes["Use"][0] == {
        **value,
        "train": {**value["train"], "loss_implementation": "fused"},
    }
    assert changes["Activation"][0]["train"]["activation_checkpointing"] == "on"
    assert changes["Weights"][0]["train"]["precision"] == "bfloat16"
    assert changes["Truncate"][0]["data"]["max_length"] == 256
    lora = changes["LoRA"][0]
    assert lora["method"] == {"name": "lora"}
    assert lora["train"]["learning_rate"] == "auto", "Full fine-tuning's rate is none for LoRA."
    assert changes["8-bit"][0]["train"]["optimizer"] == "adamw8bit"
    assert list(changes)[-1] == "SGD", "It is the last resort."
    assert changes["SGD"][0]["train"]["optimizer"] == "sgd"
    keeps = {word for word, (_, batch) in changes.items() if batch}
    assert keeps == {"Use", "Activation", "Halve", "Weights"}, "The others train differently."


def test_what_is_done_already_or_does_not_help_is_not_proposed() -> None:
    small = spec(
        "lora",
        127,
        loss_implementation="fused",
        activation_checkpointing="on",
        batch_size=1,
        precision="bfloat16",
    )
    assert changed(small) == {}
    assert "Truncate" in changed(spec(length=128)), "64 tokens are the shortest."
    assert "Weights" not in changed(spec(), on_gpu=False), "A processor is slow in 16 bits."
