"""The lab's own recommendation, its reasons, and what turns it."""

from __future__ import annotations

import dataclasses
import json
import random
import re
from typing import Any

import pytest

from lab import host
from lab.advise import options, recommend, settings, shapes, would_change
from lab.advise.case import AdviceCase, parse, sized
from lab.advise.recommend import Recommendation
from lab.advise.rules import Approach
from lab.compare import evidence
from lab.compare.evidence import ClaimVerdict, Evidence
from lab.forecasts import Forecast
from lab.models import shipped_configs
from lab.spec import RunSpec
from tests.advise.conftest import forecast_of
from tests.advise.test_rules import random_case

pytestmark = pytest.mark.usefixtures("no_planner")


def advice(**fields: Any) -> Recommendation:
    return recommend.recommend(sized(parse({"parameters": 7e9, "gpu_gb": 24, **fields})))


def test_behaviour_on_24_gb_is_lora_with_the_largest_batch_that_fits() -> None:
    advised = advice(examples=3000)
    assert advised.approach is Approach.LORA and advised.method == "lora"
    assert advised.rival is Approach.QLORA, "full does not fit"
    train = advised.chosen.spec["train"]
    assert (train["batch_size"], train["gradient_accumulation_steps"]) == (4, 4)
    tokens = 3000 * 250 * 3
    assert advised.chosen.seconds == pytest.approx(tokens / 1300)
    assert advised.chosen.usd == pytest.approx(tokens / 1300 / 3600 * 0.34)
    stored = advised.to_json()
    assert [rule["claim"] for rule in stored["rules"]] == [
        "A11", "A9", "B10", "C24", "D5", "without-regret",
    ]  # fmt: skip
    assert all(set(rule) == {"claim", "answer", "reason"} for rule in stored["rules"])
    assert set(stored["recommendation"]) == {
        "method", "settings", "fits", "reason", "would_change",
    }  # fmt: skip
    assert stored["recommendation"]["fits"] is True
    assert "5 of the 5 rule sets that count here say PEFT" in stored["recommendation"]["reason"]


def test_the_settings_are_a_spec_that_could_be_checked() -> None:
    for fields in ({}, {"goal": "knowledge", "gpu_gb": 80, "domain_shift": "far"},
                   {"goal": "new tokens"}, {"gpu_gb": 8}, {"keeps_general": True}):  # fmt: skip
        advised = advice(**fields)
        spec = RunSpec.from_json(advised.to_json()["recommendation"]["settings"])
        assert spec.model == "mistralai/Mistral-7B-Instruct-v0.1"
        assert spec.method["name"] == advised.method


def test_settings_follow_their_claims() -> None:
    def setting(field: str, approach: Approach = Approach.LORA, **fields: Any) -> Any:
        case = sized(parse({"parameters": 7e9, "gpu_gb": 24, **fields}))
        return next(
            (each.value for each in settings.reasons(case, approach) if each.field == field), None
        )

    assert setting("method.rank") == 16 and setting("method.alpha") == 32
    assert setting("method.rank", complexity="simple") == 8
    assert setting("method.rank", complexity="simple", examples=10_000) == 16
    assert setting("method.rank", complexity="complex") == 64
    assert setting("method.rank", examples=500_001) == 64
    assert setting("method.alpha", complexity="complex") == 128
    assert setting("method.rank", Approach.FULL) is None
    assert setting("train.learning_rate", Approach.FULL) == 2e-5
    assert setting("train.learning_rate", examples=3000) == 2e-4
    assert setting("train.learning_rate", examples=500) == 3e-4, "a short run"
    assert setting("train.epochs") == 3 and setting("train.epochs", keeps_general=True) == 2
    assert setting("data.general_fraction", keeps_general=True) == 0.1
    assert setting("data.max_length", model="gpt2", parameters=None) == 1024


@pytest.mark.parametrize(
    ("fields", "approach", "says"),
    [
        ({"gpu_gb": 12}, Approach.QLORA, "LoRA does not fit: it needs 16.0 GB of"),
        ({"gpu_gb": 4}, Approach.QLORA, "Nothing fits as it is"),
        (
            {"gpu_gb": 80, "goal": "continued pretraining", "domain_shift": "far",
             "error_price": "high"},
            Approach.FULL, "say full fine-tuning",
        ),
        (
            {"gpu_gb": 80, "goal": "continued pretraining", "domain_shift": "far",
             "error_price": "high", "examples": 10**6, "keeps_general": True},
            Approach.LORA, "A frozen base keeps what it could",
        ),
        (
            {"gpu_gb": 24, "goal": "continued pretraining", "domain_shift": "far",
             "error_price": "high"},
            Approach.LORA, "Full fine-tuning does not fit",
        ),
        ({"budget_usd": 0.01}, Approach.LORA, "costs least of what fits"),
        ({"budget_usd": 0.01}, Approach.LORA, "more than the budget of 0.01 USD"),
        ({"budget_usd": 0}, Approach.LORA, "more than the budget of 0.00 USD"),
        ({"examples": 10**6}, Approach.LORA, "That is 7 days"),
    ],
)  # fmt: skip
def test_the_forecast_and_what_must_stay_decide(
    fields: dict[str, Any], approach: Approach, says: str
) -> None:
    advised = advice(**fields)
    assert advised.approach is approach
    assert says in " ".join(reason.text for reason in advised.reasons)


def test_what_is_no_rival_says_why_and_what_would_hold_it() -> None:
    advised = advice(examples=3000)
    assert advised.rival is Approach.QLORA
    assert advised.ruled_out == [
        "Full fine-tuning does not fit: 60.0 GB needed, 24.9 GB there. The smallest card that "
        "holds it: A100 80GB."
    ]
    alone = advice(gpu_gb=12)
    assert alone.approach is Approach.QLORA and alone.rival is None
    assert [text.partition(":")[0] for text in alone.ruled_out] == [
        "Full fine-tuning does not fit", "LoRA does not fit",
    ]  # fmt: skip
    assert advice(gpu_gb=80).ruled_out == [] and advice(gpu_gb=80).rival is Approach.FULL


def test_new_tokens_train_the_embeddings() -> None:
    advised = advice(goal="new tokens")
    assert advised.method == "lora_embeddings"
    assert advised.chosen.spec["method"]["rank"] == 16


def test_what_would_change_it_is_searched_for_and_true() -> None:
    advised = advice(examples=3000)
    assert advised.changes, "something turns it"
    smaller = next(change for change in advised.changes if change.field == "gpu_gb")
    assert smaller.text == "down to 15 GB: QLoRA" or smaller.text == "down to 12 GB: QLoRA"
    size = float(re.findall(r"[\d.]+", smaller.text)[0])
    assert advice(examples=3000, gpu_gb=size).approach is smaller.approach
    for change in advised.changes:
        if change.field in ("goal", "domain_shift", "error_price"):
            word = change.text.removeprefix("for ").split(" ")[0]
            assert word, change.text
    assert [each.distance for each in advised.changes] == sorted(
        each.distance for each in advised.changes
    )


def test_another_memory_takes_the_place_of_a_card_that_is_named() -> None:
    advised = advice(gpu="RTX 4090 24GB", gpu_gb=None, examples=3000)
    change = next(change for change in advised.changes if change.field == "gpu_gb")
    assert change.text == "down to 12 GB: QLoRA"


def test_where_nothing_fits_the_change_is_what_does() -> None:
    advised = advice(gpu_gb=4)
    assert advised.chosen.fits is False
    larger = next(change for change in advised.changes if change.field == "gpu_gb")
    assert larger.text == "from 12 GB on: QLoRA fits"


def test_a_count_is_narrowed_down_to_where_it_turns() -> None:
    fields = {"gpu_gb": 80, "goal": "knowledge", "domain_shift": "far", "error_price": "high",
              "examples": 200_000}  # fmt: skip
    advised = advice(**fields)
    assert advised.approach is Approach.FULL
    change = next(change for change in advised.changes if change.field == "variants")
    assert change.text == "from 4 variants on: LoRA"
    assert advice(**fields, variants=3).approach is Approach.FULL
    assert advice(**fields, variants=4).approach is Approach.LORA


def test_evidence_takes_a_vote_away_and_is_named() -> None:
    case = {"parameters": 5e8, "goal": "knowledge", "examples": 200_000, "gpu_gb": 80}
    before = advice(**case)
    assert next(vote for vote in before.votes if vote.rules.claim == "A9").refuted_by == ""
    evidence.write(
        Evidence(
            id="small-models", title="Small models", date="2026-11-01",
            base="builtin:smollm2-135m-instruct",
            verdicts={"A8": ClaimVerdict("off", 0.0, "no gap"),
                      "C21": ClaimVerdict("confirmed", 0.2, "full knew 20 % more.")},
        )
    )  # fmt: skip
    after = advice(**case)
    assert next(vote for vote in after.votes if vote.rules.claim == "A9").refuted_by == "A8"
    assert before.reasons[0].text.partition(" rule sets")[0].endswith("of the 5")
    assert after.reasons[0].text.partition(" rule sets")[0].endswith("of the 4")
    text = " ".join(reason.text for reason in after.reasons)
    assert "A9 does not count here: the lab's evidence contradicts A8" in text
    assert "Measured (builtin:smollm2-135m-instruct, 2026-11-01): full knew 20 % more." in text
    large = advice(**(case | {"parameters": 7e9}))
    assert all(vote.refuted_by == "" for vote in large.votes), "135 M says little of 7 B"
    assert "A model of another size" in " ".join(reason.text for reason in large.reasons)


def refuting(claim: str, base: str) -> None:
    evidence.write(
        Evidence(id=claim.lower(), base=base, verdicts={claim: ClaimVerdict("off", 0.0, "not so")})
    )


@pytest.mark.parametrize(
    ("base", "parameters", "refuted"),
    [
        ("builtin:smollm2-135m-instruct", 5e8, "A10"),
        ("builtin:smollm2-135m-instruct", 7e9, ""),
        ("config:Llama-3.1-8B", 7e9, "A10"),
        ("config:Llama-3.1-8B", 5e8, ""),
    ],
)
def test_evidence_counts_for_models_of_about_its_size(
    base: str, parameters: float, refuted: str
) -> None:
    refuting("A10", base)
    votes = advice(parameters=parameters, examples=3000).votes
    assert next(vote for vote in votes if vote.rules.claim == "A11").refuted_by == refuted


def test_as_many_votes_on_both_sides_are_for_an_adapter() -> None:
    case = {"gpu_gb": 80, "goal": "knowledge", "domain_shift": "far", "examples": 20_000}
    refuting("E3", "config:Llama-3.1-8B")
    advised = advice(**case)
    assert "2 of the 4 rule sets that count here say PEFT" in advised.reasons[0].text
    assert advised.approach is Approach.LORA
    assert advice(**case, error_price="high").approach is Approach.FULL, "three against one"


@pytest.mark.parametrize(
    ("fields", "device"),
    [
        ({}, {"kind": "cuda"}),
        ({"gpu_gb": None, "gpu": "V100 32GB"}, options.WITHOUT_BF16),
        ({"gpu_gb": None}, {"kind": "cpu"}),
    ],
)
def test_the_least_that_a_run_needs_is_one_row_with_every_layer_recomputed(
    monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], device: dict[str, Any]
) -> None:
    asked_for: list[tuple[dict[str, Any], dict[str, Any]]] = []
    monkeypatch.setattr(host, "gpus", list)

    def estimate(spec: dict[str, Any], device: dict[str, Any]) -> Forecast:
        asked_for.append((spec["train"], device))
        return forecast_of(spec, device)

    monkeypatch.setattr(options, "estimate", estimate)
    case = sized(parse({"parameters": 7e9, "gpu_gb": 24, **fields}))
    options.least_need(case, Approach.LORA)
    ((train, where),) = asked_for
    assert (train["batch_size"], train["activation_checkpointing"]) == (1, "on")
    assert where == device


def test_what_the_planner_refuses_is_a_reason_and_no_traceback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from lab.errors import LabError

    def refuse(spec: dict[str, Any], device: dict[str, Any]) -> Any:
        raise LabError("The planner is away.", "Ask again.")

    monkeypatch.setattr(options, "estimate", refuse)
    advised = advice()
    assert advised.chosen.fits is False
    assert "cannot run here: The planner is away" in " ".join(each.text for each in advised.reasons)
    assert "No single input" in advised.would_change or advised.changes


def needs_in_proportion(
    monkeypatch: pytest.MonkeyPatch, gb_a_billion: dict[str, float]
) -> list[str]:
    """Memory grows with the model; returns the models that are asked for."""
    models: list[str] = []

    def estimate(spec: dict[str, Any], device: dict[str, Any]) -> Forecast:
        name = spec["model"].partition(":")[2]
        billions = shipped_configs.get(name).parameters / 1e9
        need = int(gb_a_billion[spec["method"]["name"]] * billions * 1e9)
        models.append(name)
        forecast = forecast_of(spec, device)
        memory = dataclasses.replace(
            forecast.memory, peak_bytes=need, fits=need <= (forecast.device_bytes or 10**15)
        )
        return dataclasses.replace(forecast, memory=memory)

    monkeypatch.setattr(options, "estimate", estimate)
    return models


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        # 2 GB a billion: 24.9 GB hold 7 B (14.5), not 13 B (26)
        ({"parameters": 7e9}, "from a model of 13B on: QLoRA"),
        ({"parameters": 13e9}, "down to a model of 7B: LoRA"),
        # 0.6 a billion: 70 B need 42.3, so that 34 B are the nearest that fit
        ({"parameters": 70e9}, "down to a model of 34B: QLoRA fits"),
        # 70 B are nearer, but fit no better: what no longer fits is no recommendation
        ({"parameters": 34e9}, "down to a model of 7B: LoRA"),
        # a model of its own: its size is what moves
        ({"model": "Llama-3.1-8B", "parameters": None}, "from a model of 13B on: QLoRA"),
        ({"parameters": 7e9, "gpu_gb": 1000}, None),
    ],
)
def test_the_nearest_size_of_a_model_that_turns_it(
    monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], text: str | None
) -> None:
    needs_in_proportion(monkeypatch, {"full": 8.0, "lora": 2.0, "qlora": 0.6})
    advised = advice(**fields)
    change = next((each for each in advised.changes if each.field == "parameters"), None)
    assert (change.text if change else None) == text
    if change is not None:
        (size,) = re.findall(r"model of ([\d.]+)B", change.text)
        turned = advice(**(fields | {"model": "", "parameters": float(size) * 1e9}))
        assert turned.approach is change.approach
        assert (turned.approach, turned.chosen.fits) != (advised.approach, advised.chosen.fits)
        assert [each.distance for each in advised.changes] == sorted(
            each.distance for each in advised.changes
        )


def test_only_what_a_size_needs_is_forecast(monkeypatch: pytest.MonkeyPatch) -> None:
    models = needs_in_proportion(monkeypatch, {"full": 8.0, "lora": 2.0, "qlora": 0.6})
    before = recommend.decide(case := sized(parse({"parameters": 7e9, "gpu_gb": 24})),
                              recommend.forecast_all(case))  # fmt: skip
    models.clear()
    recommend.with_other_sizes(before)
    assert models and set(models) == {"Llama-2-13B"}, "13 B turns it: none farther is asked for"


def change_of(field: str, **fields: Any) -> str:
    advised = advice(gpu_gb=80, goal="knowledge", domain_shift="far", **fields)
    assert advised.approach is Approach.LORA, "A9 and C24 say full, three say PEFT"
    return next(change.text for change in advised.changes if change.field == field)


def test_what_an_error_is_worth_turns_it() -> None:
    # 20,000 examples: LoRA saves 8.01 USD by D5, so that 12 turn its vote and 6 do not
    assert change_of("error_price", examples=20_000, error_price=6.0) == (
        "if two points of accuracy are worth 12.00 USD: Full fine-tuning"
    )
    assert change_of("error_price", examples=20_000, error_price="low") == (
        "if errors cost much: Full fine-tuning"
    )


def test_longer_examples_turn_it() -> None:
    """To the token where LoRA of rank 256 is used up, by LoRA without regret."""
    capacity = 2 * 256 * shapes.lora_parameters("config:Mistral-7B-v0.1", 7e9)
    least = int(capacity // 90_000) + 1
    fields = {"examples": 90_000, "error_price": "low"}
    assert change_of("tokens_per_example", **fields, tokens_per_example=8000) == (
        f"from {least:,} tokens an example on: Full fine-tuning"
    )


def test_no_count_beyond_what_the_form_takes() -> None:
    case = sized(parse({"parameters": 7e9, "gpu_gb": 80, "tokens_per_example": 1 << 20}))
    tries = would_change._tries(case)["tokens_per_example"]
    assert max(value for _, value in tries) == 1 << 19


def test_a_case_moves_without_new_forecasts() -> None:
    case = sized(AdviceCase(parameters=7e9, gpu="RTX 4090 24GB"))
    option = options.forecast_option(case, Approach.LORA)
    other = dataclasses.replace(case, examples=2 * case.examples, gpu="RTX 4070 12GB")
    moved = options.at_size(option, case, other)
    assert option.fits is True and moved.fits is False
    assert option.seconds is not None and moved.seconds == pytest.approx(
        2 * option.seconds * 165.2 / 117
    )
    assert option.energy_wh and moved.energy_wh == pytest.approx(
        option.energy_wh * moved.seconds / option.seconds * 200 / 450
    )


def test_general_ability_decides_unless_evidence_says_otherwise() -> None:
    case = {"parameters": 5e8, "gpu_gb": 80, "goal": "continued pretraining", "domain_shift": "far",
            "error_price": "high", "examples": 200_000, "keeps_general": True}  # fmt: skip
    assert advice(**case).approach is Approach.LORA
    evidence.write(
        Evidence(
            id="forgetting", date="2026-11-01", base="builtin:smollm2-135m-instruct",
            verdicts={"A5": ClaimVerdict("off", -0.2, "LoRA forgot more.")},
        )
    )  # fmt: skip
    assert advice(**case).approach is Approach.FULL


def test_random_cases_get_a_recommendation_with_its_reasons() -> None:
    """The rule sets answer ten thousand of them in their own test; here the whole of it."""
    dice = random.Random(7)
    approaches = set()
    for _ in range(25):
        advised = recommend.recommend(sized(parse(random_case(dice))))
        approaches.add(advised.approach)
        assert advised.rival is not advised.approach and advised.would_change
        assert len(advised.reasons) >= 2 and all(len(each.text) > 20 for each in advised.reasons)
        stored = json.loads(json.dumps(advised.to_json(), allow_nan=False))
        assert RunSpec.from_json(stored["recommendation"]["settings"]).method["name"]
    assert approaches >= {Approach.LORA, Approach.QLORA}


@pytest.mark.parametrize(("energy", "says"), [(999.0, "999 Wh"), (12_340.0, "12.3 kWh")])
def test_energy_is_told_in_kilowatt_hours_from_a_thousand_on(energy: float, says: str) -> None:
    advised = advice(examples=3000)
    option = dataclasses.replace(advised.chosen, energy_wh=energy)
    assert f", {says}, " in recommend._forecast_in_words(advised.case, option).text


def test_the_smallest_card_that_holds_a_run_computes_in_bfloat16() -> None:
    advised = advice(gpu_gb=12)
    option = dataclasses.replace(advised.options[Approach.FULL], need_bytes=30 * 10**9)
    smallest = "The smallest card that holds it: RTX 5090 32GB."
    assert recommend._out_in_words(option).endswith(smallest), (
        "in float32 a V100 needs twice as much"
    )
