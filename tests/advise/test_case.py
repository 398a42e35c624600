"""Cases as people write them, right and wrong."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import pytest

from lab import host
from lab.advise.case import (
    AdviceCase,
    card_of,
    device_in_words,
    device_of,
    model_of,
    nearest_config,
    parse,
    sized,
)
from lab.errors import SpecError


def test_values_by_other_words() -> None:
    case = parse(
        {
            "goal": "Instruction-following",
            "parameters": "7B",
            "domain_shift": "large",
            "tasks": "several",
            "complexity": "low",
            "error_price": "HIGH",
            "gpu": "rtx 4090 24gb",
        }
    )
    assert (case.goal, case.parameters, case.domain_shift) == ("behaviour", 7e9, "far")
    assert (case.tasks, case.complexity, case.error_price) == (2, "simple", "high")
    assert case.gpu == "RTX 4090 24GB" and case.memory_gb == 24
    assert parse({"domain_shift": 0.7}).domain_shift == "far"
    shifts = {False: "near", True: "far", 0.49: "near", 0.5: "far"}
    assert {given: parse({"domain_shift": given}).domain_shift for given in shifts} == shifts
    assert parse({"parameters": "135m"}).parameters == 135e6
    for here in ("this machine", "Here", " local "):
        assert parse({"gpu": here}).is_here, here
    assert parse({"parameters": 7}).parameters == parse({"parameters": " 7 "}).parameters == 7e9
    assert parse({"parameters": "7000000000"}).parameters == 7e9
    assert parse({"parameters": "1.5T"}).parameters == 1.5e12
    assert parse({"gpu": "rtx 4090"}).gpu == "RTX 4090 24GB"
    assert parse({"tasks": ["sort", "answer"]}).tasks == 2
    assert parse({"error_price": "none"}).error_price is None
    assert parse({"goal": "continued_pretraining"}).goal == "continued pretraining"


@pytest.mark.parametrize(
    "name", ["Llama-3.1-8B", "config:llama-3.1-8b", "meta-llama/Llama-3.1-8B-Instruct"]
)
def test_a_model_by_any_of_its_names(name: str) -> None:
    case = sized(parse({"model": name}))
    assert case.model == "config:Llama-3.1-8B" and case.parameters == 8_030_261_248


def test_every_problem_at_once() -> None:
    with pytest.raises(SpecError) as error:
        parse(
            {
                "goal": "fame",
                "examples": -3,
                "model": "config:nothing",
                "parameters": 7e9,
                "gpu": "Abacus",
                "gpu_gb": 24,
                "budget_usd": "much",
                "colour": 1,
            }
        )
    fields = {problem.field for problem in error.value.problems}
    assert {"goal", "examples", "model", "gpu", "gpu_gb", "budget_usd", "colour"} <= fields
    assert "No advice can be given, the case has" in str(error.value)
    with pytest.raises(SpecError, match="case: must be an object, is \\[1\\]"):
        parse([1])


def test_nonsense_is_refused_in_words_and_never_raises_anything_else() -> None:
    dice = random.Random(7)
    fields = [field.name for field in dataclasses.fields(AdviceCase)]
    values: list[Any] = [
        None, True, -1, 0, 7, 1e400, float("nan"), "", "7B", "x" * 5000, "\x00", [], {}, [1], "far",
        10**400, "../../etc", "config:", "builtin:x", "low", 0.5,
    ]  # fmt: skip
    refused = 0
    for _ in range(3000):
        value = {dice.choice([*fields, "what"]): dice.choice(values) for _ in range(4)}
        value.pop("model", None)  # a hub id or folder is looked for
        try:
            assert isinstance(parse(value), AdviceCase)
        except SpecError as error:
            refused += 1
            assert error.problems and all(problem.message for problem in error.problems)
    assert 1000 < refused < 3000
    for value in (None, [], 3, "text"):
        with pytest.raises(SpecError):
            parse(value)


@pytest.mark.parametrize(("name", "label"), [("NVIDIA GeForce RTX 3090", 24.0), ("Other", 25.0)])
def test_the_memory_of_this_machine_is_what_its_largest_gpu_has(
    monkeypatch: pytest.MonkeyPatch, name: str, label: float
) -> None:
    small = host.HostGpu(0, "GPU-a", "NVIDIA A2", 16_000_000_000, 15_000_000_000, "1")
    large = host.HostGpu(1, "GPU-b", name, 25_300_000_000, 1_000_000_000, "1")
    monkeypatch.setattr(host, "gpus", lambda: [small, large])
    assert parse({}).memory_gb == label, "not what is free of it at the moment"
    assert device_of(parse({})) == {"kind": "cuda"} and device_in_words(parse({})) == name
    monkeypatch.setattr(host, "gpus", list)
    assert parse({}).memory_gb == round(host.describe().memory_bytes / 1e9, 1)
    assert device_of(parse({})) == {"kind": "cpu"}


def test_the_nearest_config_and_card() -> None:
    assert nearest_config(7e9).name == "Mistral-7B-v0.1"
    assert nearest_config(1e12).name == "Llama-3-70B"
    # by the ratio: 7.2 B are 1.32 times as many, and 5.5 B are 1.37 times 4 B
    assert nearest_config(5.5e9).name == "Mistral-7B-v0.1"
    assert nearest_config(50e9).name == "Llama-3-70B"
    case = parse({"parameters": 7e9, "gpu_gb": 24})
    assert model_of(case) == "config:Mistral-7B-v0.1"
    card = card_of(case)
    assert card is not None and card.name == "RTX 4090 24GB"  # the fastest with that label
    assert device_of(case) == {"gpu": "RTX 4090 24GB"}
    assert device_of(parse({"gpu_gb": 20}))["memory_bytes"] == 20_000_000_000
