"""Whether a run fits here: what the device has, what is refused, and the way out."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import psutil
import pytest
import torch

from lab import host
from lab.devices import HostGpu
from lab.formatting import size
from tests.answers import check, estimate

Make = Callable[..., dict[str, Any]]
GIB = 2**30


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`gpu(bytes)`: this machine has an H100 of that size, of which only a tenth is free now."""

    def have(total: int, name: str = "NVIDIA H100 80GB HBM3") -> None:
        card = HostGpu(0, "GPU-0", name, total, total // 10)
        monkeypatch.setattr(host, "gpus", lambda: [card])

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    return have


def large(make_spec: Make, method: str = "full", **train: Any) -> dict[str, Any]:
    sections = {"batch_size": 8, "precision": "bfloat16", "activation_checkpointing": "off"}
    return make_spec(method, train=sections | train, data={"max_length": 512})


def problem_of(spec: dict[str, Any]) -> str:
    (problem,) = check(spec)["problems"]
    assert problem["field"] == "hardware.ignore_memory"
    message: str = problem["message"]
    return message


def needed(answer: dict[str, Any]) -> int:
    """Bytes: what the allocator reserves counts where the step was traced."""
    estimate = answer["estimate"]
    return max(estimate["peak_bytes"], estimate["reserved_bytes"] or 0)


@pytest.mark.parametrize(
    ("name", "context"), [("NVIDIA H100 80GB HBM3", 750_000_000), ("A new card", 600_000_000)]
)
def test_a_gpu_has_what_cudas_context_leaves(
    make_spec: Make, gpu: Callable[..., None], name: str, context: int
) -> None:
    gpu(80 * 10**9, name)
    answer = check(large(make_spec))
    assert answer["problems"] == []
    estimate = answer["estimate"]
    assert estimate["context_bytes"] == context
    assert estimate["source"] == "shadow" and estimate["device"] == "cuda"
    assert estimate["reserved_bytes"] > estimate["peak_bytes"]
    gpu(needed(answer) + context, name)
    assert check(large(make_spec))["problems"] == [], "It fits to the byte."
    gpu(needed(answer) + context - 1, name)
    message = problem_of(large(make_spec))
    free = size(needed(answer) - 1)
    assert f"the GPU has {free}" in message, "What others hold now is the queue's matter."
    assert f"needs {size(estimate['peak_bytes'])} at its peak" in message
    assert f"the allocator reserves {size(needed(answer))}" in message, "It is what is too much."


def test_a_processor_has_the_machines_memory(
    make_spec: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = {"batch_size": 8, "activation_checkpointing": "off"}
    spec = make_spec("full", data={"max_length": 512}, train=train)
    peak = check(spec)["estimate"]["peak_bytes"]
    memory = psutil.virtual_memory()._replace(total=peak - 1, available=peak + 10**12)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    message = problem_of(spec)
    assert f"this machine has {size(peak - 1)}" in message and "GPU" not in message
    forced = check(spec | {"hardware": {"ignore_memory": True}})
    assert forced["problems"] == [] and forced["estimate"]["fits"] is False
    enough = memory._replace(total=peak, available=10**6)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: enough)
    assert check(spec)["estimate"]["fits"] is True, "All of it, not what happens to be free."


def test_a_check_predicts_what_an_estimate_of_the_same_run_does(
    make_spec: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a processor too, checkpointing that is left open is decided, for both."""
    spec = make_spec("full", data={"max_length": 512}, train={"batch_size": 8})
    peak = check(spec)["estimate"]["peak_bytes"]
    memory = psutil.virtual_memory()._replace(total=peak - 1, available=peak - 1)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    started = check(spec)
    assert started["problems"] == []
    assert started["spec"]["train"]["activation_checkpointing"] == "on"
    assert started["estimate"]["peak_bytes"] < peak and started["estimate"]["fits"] is True
    estimated = estimate(spec, None, {"shadow": False, "time": True})
    same = started["estimate"].keys() - {"seconds", "notes"}
    assert {key: started["estimate"][key] for key in same} == {key: estimated[key] for key in same}


def test_the_change_that_is_named_makes_it_fit_and_says_what_it_then_needs(
    make_spec: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So little memory that rows must be halved again and again."""
    spec = make_spec("lora", data={"max_length": 64}, train={"batch_size": 512})
    spec["train"]["activation_checkpointing"] = "on"
    eighth = spec | {"train": spec["train"] | {"batch_size": 64, "gradient_accumulation_steps": 8}}
    room = check(eighth)["estimate"]["peak_bytes"]
    memory = psutil.virtual_memory()._replace(total=room)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    message = problem_of(spec)
    named = re.search(r"fits: halve the batch size.*\((.*)\), ([\d.]+ [kMG]B)\.", message)
    assert named, message
    changes = dict(part.split("=") for part in named[1].split(", "))
    assert (
        changes["train.batch_size"] == "64" and changes["train.gradient_accumulation_steps"] == "8"
    ), "Halved three times, and as many rows a step."
    assert check(eighth)["problems"] == [] and named[2] == size(room)


def test_checkpointing_is_decided_only_where_it_is_left_open(
    make_spec: Make, gpu: Callable[..., None]
) -> None:
    gpu(80 * 10**9)
    spec = large(make_spec, "lora", batch_size=32)  # two small layers keep little of fewer rows
    most = needed(check(spec))
    spec["train"]["activation_checkpointing"] = "auto"
    assert check(spec)["spec"]["train"]["activation_checkpointing"] == "off", "There is room."
    gpu(most + 750_000_000 - 1)
    decided = check(spec)
    assert decided["problems"] == []
    assert decided["spec"]["train"]["activation_checkpointing"] == "on"
    assert needed(decided) < most
    assert decided["estimate"]["context_bytes"] == 750_000_000
    spec["train"]["activation_checkpointing"] = "off"
    assert "activation checkpointing" in problem_of(spec), "Switched off, it is proposed, not done."
    prefix = large(make_spec, "prefix", activation_checkpointing="auto", batch_size=64)
    gpu(600_000_000)
    refused = {problem["field"] for problem in check(prefix)["problems"]}
    assert refused == {"hardware.ignore_memory"}, "Prefixes cannot be recomputed."


def test_a_long_run_is_compiled_in_the_check_and_in_the_estimate_with_its_time(
    make_spec: Make, gpu: Callable[..., None]
) -> None:
    gpu(80 * 10**9)
    long = make_spec("lora", train={"max_steps": 500_000}, data={"max_length": 64})
    assert check(long)["spec"]["train"]["compile"] == "on"
    for how, is_compiled in (({"time": True}, True), ({}, False)):
        notes = estimate(long, None, {"shadow": False, **how})["notes"]
        assert any("Compiled" in note for note in notes) is is_compiled, how
    short = make_spec("lora", train={"max_steps": 50}, data={"max_length": 64})
    assert check(short)["spec"]["train"]["compile"] == "off"


def test_packed_rows_need_their_mask(make_spec: Make, gpu: Callable[..., None]) -> None:
    gpu(80 * 10**9)
    peaks = []
    for packing in ("off", "on"):
        spec = large(make_spec, "lora")
        spec["data"]["packing"] = packing
        answer = check(spec)
        assert answer["estimate"]["settings"]["packed"] is (packing == "on")
        peaks.append(answer["estimate"]["peak_bytes"])
    assert peaks[1] - peaks[0] >= 8 * 512 * 512, "A mask of rows x length x length."
