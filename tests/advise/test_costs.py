"""The bill of a recommendation, prices of one's own, and what a run has cost."""

from __future__ import annotations

import json

import numpy as np
import pytest

from lab.advise import costs, findings, prices, recommend, run_cost, worth_knowing
from lab.advise.case import parse, sized
from lab.advise.claims import Ruling, memory_rules, parameter_counts
from lab.advise.rules import Approach
from lab.atomic_files import write_json
from lab.errors import SpecError
from tests.advise.conftest import forecast_of
from tests.compare.recorded import record


def bill(**fields: object) -> dict[str, costs.CostItem]:
    case = sized(parse({"parameters": 7e9, "gpu": "RTX 4090 24GB", "examples": 3000, **fields}))
    return {item.key: item for item in costs.bill(recommend.recommend(case))}


@pytest.mark.usefixtures("no_planner")
def test_every_line_by_hand() -> None:
    lines = bill(variants=10)
    training = 3000 * 250 * 3 / 1300 / 3600 * 0.34
    assert lines["training"].usd == pytest.approx(training)
    assert lines["experiments"].usd == pytest.approx(20 * training)
    assert lines["checkpoints"].usd == pytest.approx(5 * 0.58 * 0.023)
    # one base of 14 GB and ten adapters of 80 MB, not 140 GB
    assert lines["variants"].usd == pytest.approx((14 + 0.8) * 0.023)
    assert "copies: 140.00 GB" in lines["variants"].how
    # (14 + 0.8) GB × 1.2 need a card of 24 GB, of which the cheapest costs 0.34 USD an hour
    assert lines["serving"].usd == pytest.approx(0.34 * 730)
    assert "RTX 4090" in lines["serving"].amount
    assert all(line.amount and line.how for line in lines.values())


@pytest.mark.usefixtures("no_planner")
def test_prices_of_ones_own_come_first_and_keep_their_date() -> None:
    before = bill()["training"].usd
    prices.keep("RTX 4090 24GB", 0.68, "2026-12-01")
    after = bill()["training"]
    assert before is not None and after.usd == pytest.approx(2 * before)
    assert "2026-12-01" in after.how
    prices.keep("storage", 0.046, "2026-12-01")
    prices.keep("A100 80GB", 9.0, "2026-12-02")
    assert bill()["training"].usd == after.usd, "another price leaves this one as it was set"
    assert bill()["checkpoints"].usd == pytest.approx(2 * 5 * 0.58 * 0.023)
    assert prices.shipped().storage.usd == 0.023, "the shipped file stays as it is"


@pytest.mark.parametrize(
    ("name", "value"), [("Abacus", 1.0), ("storage", -1.0), ("storage", float("nan"))]
)
def test_a_price_that_is_none_is_refused(name: str, value: float) -> None:
    with pytest.raises(SpecError, match="The price was not kept, the price has"):
        prices.keep(name, value, "2026-12-01")
    assert not prices.file().exists()


@pytest.mark.parametrize("date", ["", "yesterday", "2026-13-01", "01.12.2026"])
def test_a_date_that_is_none_is_refused(date: str) -> None:
    with pytest.raises(SpecError, match="give one such as 2026-11-26"):
        prices.keep("storage", 0.03, date)
    assert not prices.file().exists()


def test_damaged_prices_are_passed_over() -> None:
    prices.keep("storage", 1.0, "2026-12-01")
    stored = {"cards": {"T4 16GB": {"usd": "x"}, "A100 80GB": 3}, "storage": {"usd": 1e99}}
    prices.file().write_text(json.dumps(stored))
    assert prices.current() == prices.shipped()


@pytest.mark.usefixtures("no_planner")
def test_a_run_on_this_machine_costs_its_electricity_and_no_rent() -> None:
    prices.keep("electricity", 0.5, "2026-12-01")
    case = sized(parse({"parameters": 7e9, "examples": 3000}))
    line = costs.bill(recommend.recommend(case))[0]
    energy_kwh = 3000 * 250 * 3 / 1e6 * 30 / 1000  # 30 Wh a million tokens
    assert line.usd == pytest.approx(energy_kwh * 0.5)
    assert "0.5 USD a kWh (2026-12-01)" in line.how


@pytest.mark.usefixtures("no_planner")
def test_two_epochs_against_forgetting_cost_two_thirds_of_three() -> None:
    usual, keeping = bill()["training"], bill(keeps_general=True)["training"]
    assert usual.usd is not None and keeping.usd == pytest.approx(2 / 3 * usual.usd)
    assert "× 3 epochs)" in usual.how and "× 2 epochs)" in keeping.how
    assert keeping.how.startswith("1,500,000 tokens")


@pytest.mark.usefixtures("no_planner")
def test_a_card_without_a_price_says_so() -> None:
    case = sized(parse({"parameters": 7e9, "gpu": "RTX 5090 32GB"}))
    line = costs.bill(recommend.recommend(case))[0]
    assert line.usd is None and "no price an hour of RTX 5090 32GB is set" in line.how


def test_energy_is_the_power_over_time() -> None:
    device = {
        "time": np.array([0.0, 1.0, 2.0, 100.0]),  # a gap of 98 s counts as 5
        "nvml/power_w": np.array([100.0, 200.0, 300.0, 300.0]),
    }
    energy = run_cost._energy_wh(device)
    assert energy == pytest.approx((150 + 250 + 5 * 300) / 3600)
    assert run_cost._energy_wh({"time": np.array([]), "nvml/power_w": np.array([])}) is None
    cost = run_cost.RunCost(60.0, energy, 0.01, 0.5, "RTX 4090 24GB")
    assert "0.5 Wh measured" in cost.in_words() and "0.50 USD if the RTX 4090" in cost.in_words()
    assert "not measured" in run_cost.RunCost(60.0).in_words()


def test_a_run_has_cost_its_electricity_or_the_rent_of_its_card() -> None:
    run = record("aaaa", power=360.0, seconds=100)
    write_json(run.result, {"state": "done", "started": 1e9, "ended": 1e9 + 1800})
    write_json(run.process, {"pid": 1, "gpu": "GPU-0123"})
    write_json(run.environment, {"device": "NVIDIA H100 80GB HBM3"})
    for name, usd in (("electricity", 0.5), ("H100 80GB", 3.0)):
        prices.keep(name, usd, "2026-12-01")
    cost = run_cost.cost_of(run)
    assert cost.seconds == 1800 and cost.energy_wh == pytest.approx(10.0), "360 W for 100 s"
    assert cost.energy_usd == pytest.approx(0.01 * 0.5), "a kWh has its price"
    assert cost.rent_usd == pytest.approx(1.5) and "if the H100 80GB were rented" in cost.in_words()


def test_figures_of_section_five_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that follow from printed numbers alone, and the time that A6 prints."""
    for module in (parameter_counts, memory_rules):
        monkeypatch.setattr(module, "estimate", forecast_of)
    rows = {(row.claim, row.title, row.unit): row for row in costs.printed_figures()}
    by_hand = {
        ("C17", "7B", "GB"): ("280", "280"), ("C17", "7B a month", "USD"): ("6.44", "6.44"),
        ("C17", "70B", "GB"): ("2,800", "2,800"), ("C17", "70B a month", "USD"): ("64", "64.4"),
        ("C17", "LoRA", "GB"): ("3", "3"), ("C18", "copies", "GB"): ("140", "140"),
        ("A6", "QLoRA on one A100", "USD"): ("100 to 500", "12"),
        # 37.5 million tokens at 1,200 a second, as the table of these tests has it
        ("A6", "QLoRA here", "hours"): ("2 to 4", f"{37.5e6 / 1200 / 3600:.4g}"),
        ("A6", "full here", "days"): ("2 to 4", f"{37.5e6 / 1000 / 86_400:.4g}"),
        ("C16", "7B LoRA", "USD"): ("15 to 30", f"{37.5e6 / 1300 / 3600 * 3:.4g}"),
        ("B11", "prefix", "MB"): ("under 10", "10.49"),
    }  # fmt: skip
    assert {key: (rows[key].printed, rows[key].here) for key in by_hand} == by_hand
    assert rows["A6", "QLoRA on one A100", "USD"].off_by == "−88 %"
    assert findings.find("A6").kind is not Ruling.CONTRADICTS, "it names no price an hour"


def test_worth_knowing() -> None:
    def about(**spec: object) -> set[str]:
        return {caution.about for caution in worth_knowing.of_spec(spec)}

    lora = {"name": "lora", "rank": 64, "alpha": 32.0}
    assert about(method=lora, data={"objective": "pretraining"}) == {"pretraining", "alpha"}
    assert about(method={**lora, "alpha": 128.0}) == set()
    assert about(method={"name": "lora", "rank": 16, "alpha": 32.0}) == set()
    assert about(method={"name": "full"}) == {"general data"}
    full = {"method": {"name": "full"}, "data": {"general_fraction": 0.1}}
    assert about(**full, train={"learning_rate": 1e-3}) == {"rate"}
    assert about(**full, train={"learning_rate": 2e-5}) == set()
    assert about(method={"name": "lora"}, train={"learning_rate": 1e-3}) == set(), "of full alone"
    assert about(method={**lora, "use_rslora": True}) == set(), "it scales by the root of the rank"
    assert about(method="nonsense") == about() == set()
    pair = [{"method": {"name": name}, "train": {"max_steps": 60}} for name in "full lora".split()]
    assert [each.claim for each in worth_knowing.of_pair(pair)] == ["C23"]
    for limit, unit in (
        ({"max_steps": 60}, "steps"), ({"max_tokens": 9000}, "tokens"), ({}, "epochs"),
        ({"max_seconds": 60.0}, ""), ({"max_flops": 1e12}, ""),
    ):  # fmt: skip
        texts = [each.text for each in worth_knowing.of_pair(
            [{"method": {"name": name}, "train": limit} for name in ("full", "lora")]
        )]  # fmt: skip
        assert [f"at equal {unit}," in text for text in texts] == ([True] if unit else [])
    assert worth_knowing.of_pair(pair[:1]) == []
    (half,) = worth_knowing.of_pair([pair[0] | {"train": {"max_seconds": 60.0}}, pair[1]])
    assert "at equal epochs," in half.text, "a limit of one of them makes no equal terms"
    assert worth_knowing.of_result("lora") and not worth_knowing.of_result("full")
    assert Approach.LORA.in_words == "LoRA"


@pytest.mark.usefixtures("no_planner")
def test_a_range_of_experiments_and_the_memory_of_serving_are_written_out() -> None:
    lines = bill(variants=10)
    training = 3000 * 250 * 3 / 1300 / 3600 * 0.34
    money = f"{training * 10:.2f} USD to {training * 20:.2f} USD"
    assert lines["experiments"].amount.startswith(money), lines["experiments"].amount
    assert ": 17.76 GB;" in lines["serving"].how, "(14 + 10 adapters of 0.08) GB × 1.2"


def test_a_price_below_nothing_and_a_card_of_no_table_are_passed_over() -> None:
    prices.keep("storage", 1.0, "2026-12-01")
    price = {"usd": 2.0, "date": "2026-12-01", "source": "x"}
    stored = {"cards": {"Abacus": price, "T4 16GB": price | {"usd": -1.0}},
              "electricity": price | {"usd": -0.1}}  # fmt: skip
    prices.file().write_text(json.dumps(stored))
    assert prices.current() == prices.shipped()
