"""Each rule set on the articles' examples, and on ten thousand random cases."""

from __future__ import annotations

import random
from typing import Any

import pytest

from lab import gpu_table
from lab.advise import shapes
from lab.advise.case import (
    COMPLEXITIES,
    DISTANCES,
    GOALS,
    PRICES_IN_WORDS,
    AdviceCase,
    parse,
    sized,
)
from lab.advise.rules import Approach, RuleAnswer, all_rule_sets
from lab.advise.rules.d5 import training_saved_usd
from lab.models import shipped_configs
from lab.paths import ROOT


def answer(claim: str, **fields: Any) -> RuleAnswer:
    rules = next(rules for rules in all_rule_sets() if rules.claim == claim)
    return rules.answer(AdviceCase(**{"parameters": 7e9, "gpu_gb": 24.0, **fields}))


def test_there_are_six_each_in_a_file_of_its_own() -> None:
    claims = [rules.claim for rules in all_rule_sets()]
    assert claims == ["A11", "A9", "B10", "C24", "D5", "without-regret"]
    files = {file.stem for file in (ROOT / "lab/advise/rules").glob("*.py")} - {"__init__"}
    assert len(files) == 6
    fields = set(AdviceCase.__dataclass_fields__)
    for rules in all_rule_sets():
        assert rules.source and rules.title and set(rules.inputs) <= fields


@pytest.mark.parametrize(
    ("fields", "approach", "says"),
    [
        ({"parameters": 13e9, "examples": 50_000}, Approach.PEFT, "over 10 B"),
        ({"examples": 200_000, "domain_shift": "far"}, Approach.FULL, "200,000"),
        ({"examples": 200_000}, Approach.PEFT, "the domain is near"),
        ({"examples": 50_000, "domain_shift": "far"}, Approach.PEFT, "not over 100,000"),
        ({"examples": 50_000, "budget_usd": 999.0}, Approach.QLORA, "under 1,000"),
        ({"examples": 50_000, "budget_usd": 1000.0}, Approach.PEFT, "At most 10 B"),
        ({"examples": 50_000, "variants": 4}, Approach.LORA, "mandatory"),
        ({"examples": 50_000, "goal": "continued pretraining"}, Approach.FULL, "pretraining"),
        ({"examples": 9_999}, Approach.PEFT, "under 10,000"),
        ({"examples": 10_000}, Approach.PEFT, "At most 10 B"),
        ({"examples": 200_000, "domain_shift": "far", "keeps_general": True}, Approach.PEFT,
         "must be kept"),
        # two overrides that disagree: the first of the list decides, the other is named
        ({"examples": 50_000, "goal": "continued pretraining", "budget_usd": 5.0},
         Approach.QLORA, "It also says: continued pretraining"),
    ],
)  # fmt: skip
def test_a11(fields: dict[str, Any], approach: Approach, says: str) -> None:
    result = answer("A11", **fields)
    assert result.approach is approach and says in result.reason


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"parameters": 7e9, "gpu_gb": 16.0, "complexity": "simple"}, "LoRA r8"),
        ({"parameters": 7e9, "gpu_gb": 16.0, "complexity": "moderate"}, "LoRA r16"),
        ({"parameters": 7e9, "gpu_gb": 16.0, "complexity": "complex"}, "LoRA r32"),
        ({"parameters": 7e9, "gpu_gb": 15.9}, "None fits"),  # QLoRA is for over 7 B only
        ({"parameters": 7e9, "gpu_gb": 15.9, "tasks": 2}, "Bottleneck adapters (64)"),
        ({"parameters": 70e9, "gpu_gb": 80.0}, "QLoRA r16"),
        ({"parameters": 70e9, "gpu_gb": 43.0}, "None fits"),  # 0.6 × 70 + 2 = 44
        # printed as "Adapter Layers", which the rule does not return
        ({"parameters": 7e9, "gpu_gb": 24.0, "complexity": "simple", "tasks": 2}, "LoRA r8"),
    ],
)
def test_b10(fields: dict[str, Any], text: str) -> None:
    assert answer("B10", **fields).answer == text


def test_b10_tells_of_its_own_contradiction() -> None:
    assert "prints Adapter Layers" in answer("B10", complexity="simple", tasks=2).reason
    assert "Adapter Layers" not in answer("B10", complexity="simple").reason


@pytest.mark.parametrize(
    ("fields", "approach", "says"),
    [
        ({"goal": "knowledge", "gpu_gb": 98.0}, Approach.FULL, "98 GB fit into 98 GB"),
        ({"goal": "knowledge", "gpu_gb": 80.0}, Approach.QLORA, "98 GB do not fit into 80 GB"),
        ({"goal": "behaviour", "gpu_gb": 80.0}, Approach.LORA, "Instruction following"),
        ({"goal": "behaviour", "gpu_gb": 17.0}, Approach.QLORA, "17.5 GB do not fit"),
        ({"goal": "behaviour", "gpu_gb": 80.0, "variants": 10}, Approach.LORA,
         "140 GB as copies and about 16 GB"),
    ],
)  # fmt: skip
def test_c24(fields: dict[str, Any], approach: Approach, says: str) -> None:
    result = answer("C24", **fields)
    assert result.approach is approach and says in result.reason


def test_d5_turns_at_the_training_that_is_saved() -> None:
    case = AdviceCase(parameters=7e9, gpu_gb=24.0, examples=50_000)
    # 4 × 7e9 × 50,000 × 250 × 3 FLOPs at 35 % of 312 TFLOP/s, 3 USD an hour, times 2.5
    saved = 4 * 7e9 * 50_000 * 250 * 3 / (0.35 * 312e12) / 3600 * 3 * 2.5
    assert training_saved_usd(case) == pytest.approx(saved)
    assert answer("D5", examples=50_000, error_price=saved - 0.01).approach is Approach.LORA
    assert answer("D5", examples=50_000, error_price=saved + 0.01).approach is Approach.FULL
    assert answer("D5", error_price="high").approach is Approach.FULL
    assert answer("D5", error_price="low").approach is Approach.LORA
    assert answer("D5", goal="knowledge", parameters=2.9e9).approach is Approach.FULL
    assert answer("D5", goal="knowledge", parameters=3e9).approach is Approach.LORA
    assert answer("D5", goal="knowledge", parameters=2e9, budget_usd=5.0).approach is Approach.LORA


@pytest.mark.parametrize(
    "fields",
    [
        {"domain_shift": "far"},
        {"goal": "continued pretraining"},
        {"goal": "new tokens"},
        {"error_price": "high"},
        {"parameters": 0.9e9},
    ],
)
def test_a9_needs_full_for_each_of_its_cases(fields: dict[str, Any]) -> None:
    assert answer("A9", **fields).approach is Approach.FULL
    assert answer("A9").approach is Approach.PEFT
    is_of_size = "parameters" in fields
    assert answer("A9", **fields).rests_on == (("A8",) if is_of_size else ())
    both = answer("A9", parameters=0.9e9, goal="new tokens", domain_shift="far")
    assert both.rests_on == (), "another reason stands where that of the size falls"


def test_lora_without_regret_turns_where_the_capacity_ends() -> None:
    config = shipped_configs.get("Llama-3.1-8B")
    each = shapes.lora_count(config.config, 1)
    assert each == 41_943_040 // 16
    most = 2 * 256 * each  # tokens: a bit each, two bits a parameter
    fields = {"parameters": None, "model": config.id, "tokens_per_example": 1}
    at_most = answer("without-regret", **fields, examples=most)
    assert at_most.answer == "LoRA r256, all linear layers"
    assert answer("without-regret", **fields, examples=most + 1).approach is Approach.FULL
    assert answer("without-regret", **fields, examples=1000).answer.startswith("LoRA r8")


@pytest.mark.parametrize(
    ("name", "rank", "names", "count"),
    [
        ("Llama-3.2-3B", 16, ("q_proj", "v_proj"), 4_587_520),
        ("Llama-3.1-8B", 16, (), 41_943_040),
        ("gpt2", 8, ("c_attn",), 294_912),
        # one matrix for q, k and v, and one for gate and up
        ("Phi-3.5-mini-instruct", 16, (), 32 * 16 * (12_288 + 6144 + 19_456 + 11_264)),
    ],
)
def test_closed_forms_of_lora(name: str, rank: int, names: tuple[str, ...], count: int) -> None:
    assert shapes.lora_count(shipped_configs.get(name).config, rank, names) == count


def test_every_shipped_config_has_shapes() -> None:
    for config in shipped_configs.shipped():
        assert shapes.lora_count(config.config, 1) > 10_000


def random_case(dice: random.Random) -> dict[str, Any]:
    """A case as somebody may write it, any field left out."""
    value: dict[str, Any] = {
        "goal": dice.choice(GOALS),
        "examples": round(10 ** dice.uniform(0, 9)),
        "tokens_per_example": round(10 ** dice.uniform(0, 4)),
        "domain_shift": dice.choice(DISTANCES),
        "budget_usd": dice.choice([None, 10 ** dice.uniform(-2, 6)]),
        "variants": dice.choice([1, 2, 3, 4, 50]),
        "keeps_general": dice.random() < 0.5,
        "error_price": dice.choice([None, *PRICES_IN_WORDS, 10 ** dice.uniform(-2, 6)]),
        "complexity": dice.choice(COMPLEXITIES),
        "tasks": dice.choice([1, 2, 9]),
    }
    value = {key: item for key, item in value.items() if dice.random() < 0.8}
    if dice.random() < 0.3:
        value["model"] = dice.choice(shipped_configs.shipped()).id
    elif dice.random() < 0.9:
        value["parameters"] = 10 ** dice.uniform(6, 13)
    if dice.random() < 0.5:
        value["gpu"] = dice.choice(gpu_table.GPUS).name
    else:
        value["gpu_gb"] = 10 ** dice.uniform(-1, 4)
    return value


def test_every_rule_set_answers_ten_thousand_random_cases() -> None:
    dice = random.Random(22)
    answers: dict[str, set[Approach]] = {}
    for _ in range(10_000):
        case = sized(parse(random_case(dice)))
        for rules in all_rule_sets():
            result = rules.answer(case)
            assert result.answer and len(result.reason) > 20, (rules.claim, case)
            assert result.reason.rstrip().endswith((".", ":")), result.reason
            answers.setdefault(rules.claim, set()).add(result.approach)
    assert all(len(approaches) > 1 for approaches in answers.values()), "none is a constant"
