"""Patterns of a stranger: matched within a time, and never left to a library."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from lab import methods
from lab.errors import LabError
from lab.methods import Context
from lab.methods.parts import patterns
from lab.methods.parts.target_modules import target_layers, target_problems
from lab.spec import RunSpec
from tests.methods import tiny

NAMES = [f"model.layers.{n}.self_attn.{p}_proj" for n in range(40) for p in "qkvo"]
FAST_NOW = (r"(a+)+$", r"([a-z._0-9]+)*!", r"(.*)*x", r"(\w+\.?)*\d!", r"((a|[a-z_.0-9])+)+!")
SLOW = r"(\w|[a-z]|\.)*?(?<=z)"  # also for an engine that guards against repeats in repeats


@pytest.mark.parametrize("pattern", [*FAST_NOW, SLOW])
def test_repeats_inside_repeats_end(pattern: str) -> None:
    started = time.monotonic()
    try:
        assert patterns.matching(pattern, NAMES, seconds=0.3) == []
    except LabError as error:
        assert "takes longer than 0.3 s" in error.message and "list the names" in error.hint
        assert pattern == SLOW
    assert time.monotonic() - started < 20


@pytest.mark.parametrize(
    "pattern",
    [
        r".*\.(q|v)_proj",
        r"model\.layers\.(1|2|3)\..*",
        r".*",
        r"q_proj",
        r"model\.layers\.1",
        r"(?i).*Q_PROJ",
        r"(.)\1",
    ],
)
def test_a_pattern_means_what_it_means_to_python(pattern: str) -> None:
    expected = [name for name in NAMES if re.fullmatch(pattern, name)]
    assert patterns.matching(pattern, NAMES) == expected


@pytest.mark.parametrize("pattern", [".*(", "(?R)", "[", "(" * 5000 + ")" * 5000, "a{9999999999}"])
def test_what_is_no_pattern_is_an_error_of_the_pattern(pattern: str) -> None:
    with pytest.raises(re.error):
        patterns.matching(pattern, NAMES)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns.matching, "__defaults__", (0.3,))


@pytest.mark.usefixtures("hasty")
def test_slow_targets_are_a_problem_of_their_field() -> None:
    model = tiny.make_empty("llama")
    (problem,) = target_problems(model, [f"re:{SLOW}"], True)
    assert problem.field == "method.target_modules" and "takes longer than" in problem.message
    with pytest.raises(LabError, match="takes longer than"):
        target_layers(model, [f"re:{SLOW}"])


@pytest.mark.usefixtures("hasty")
def test_slow_patterns_of_what_freezes_are_a_problem_of_their_field() -> None:
    full = methods.get("full")
    config = full.config(freeze=["embeddings", f"re:{SLOW}"])
    (problem,) = full.check(tiny.make_empty("llama"), config, Context(None, None))
    assert problem.field == "method.freeze" and "takes longer than" in problem.message


@pytest.mark.parametrize("name", ["lora", "adalora", "loha", "lokr", "oft", "vera"])
@pytest.mark.parametrize("sign", ["re:", ""], ids=["marked", "of an older run"])
def test_peft_is_handed_names_in_place_of_a_pattern(name: str, sign: str, tmp_path: Path) -> None:
    pattern = sign + r".*layers\.1\..*(q|o)_proj"
    spec: Any = {"method": {"name": name, "target_modules": pattern}}
    parsed = RunSpec.parse(spec, [])
    method = methods.get(name)
    model = tiny.make_model("llama")
    model = method.apply(model, parsed.method_config, Context(parsed, tiny.make_tokenizer()))
    method.save(model, tmp_path)
    stored = json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"]
    assert sorted(stored) == [f"model.layers.1.self_attn.{part}_proj" for part in "oq"], (
        "A pattern in the result would be matched without a limit at each loading."
    )
    loaded = method.load(tiny.make_model("llama"), tmp_path)
    adapted = {
        one.removeprefix("base_model.model.")
        for one, module in loaded.named_modules()
        if hasattr(module, "base_layer")
    }
    assert adapted == set(stored)
