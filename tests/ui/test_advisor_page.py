"""The Advisor: the answer for a case, its tables, and the form that it fills."""

from __future__ import annotations

import datetime
import time
from typing import Any

import pytest

from lab import formatting
from lab.advise import options, prices, recommend, run_cost
from lab.advise.case import parse, sized
from lab.advise.rules import Approach
from lab.paths import RunDir
from lab.ui import advisor_start, advisor_tables, advisor_view, worth_knowing_view
from tests.advise.conftest import forecast_of, no_shipped_evidence  # noqa: F401
from tests.ui.conftest import Page, words
from tests.ui.screen import Screen

CASE = {"advise.model": "7B", "advise.hardware": "24 GB", "advise.examples": "3000"}


@pytest.fixture(autouse=True)
def no_planner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "estimate", forecast_of)
    monkeypatch.setattr("lab.ui.submit.warm", lambda: None)
    monkeypatch.setattr(advisor_view, "_jobs", type(advisor_view._jobs)(64))
    # twenty forecasts, tested with the claims
    monkeypatch.setattr(advisor_tables.costs, "printed_figures", list)


def settled(at: Any, until: str = "What would change it") -> Any:
    """The page once its forecasts are there."""
    deadline = time.monotonic() + 30
    while until not in words(at) and time.monotonic() < deadline:
        time.sleep(0.1)
        at.run()
    assert not at.exception
    return at


def test_the_address_opens_a_case_with_its_answer(open_page: Page) -> None:
    at = settled(open_page("advisor", **CASE))
    text = words(at).replace("\\", "")
    assert "### LoRA, rank 16, all linear layers" in text
    assert "A small adapter trains next to the frozen model." in text
    assert "20 of" not in text and "19.0 GB of 24.9 GB" in text
    assert "5 of the 5 rule sets that count here say PEFT" in text and "LoRA without regret" in text
    each = 3000 * 250 * 3 / 1300 / 3600 * 0.34
    assert f"{10 * each:.2f} USD to {20 * each:.2f} USD" in text
    assert at.button(key="advise.start").label == "Set up this run"
    assert "Full fine-tuning does not fit: 60.0 GB needed, 24.9 GB there" in text
    assert "nothing to compare it with" not in text
    rules = at.table[0].value
    assert len(rules) == 6
    assert rules["Rule"].iloc[0].startswith("[A11](/claims?id=A11)")


def test_a_changed_case_changes_the_answer_and_those_that_disagree_come_first(
    open_page: Page,
) -> None:
    at = settled(open_page("advisor", **(CASE | {"advise.hardware": "12 GB"})))
    assert "### QLoRA" in words(at)
    text = words(at).replace("\\", "")
    assert "nothing to compare it with" in text
    assert (
        "LoRA does not fit: 16.0 GB needed, 12.2 GB there. The smallest card that holds it: "
        in text
    )
    assert "V100" not in text, "float32 there, which takes twice as much"
    rules = at.table[0].value
    marks = list(rules["Agrees"])
    assert "no" in marks[0] and "yes" in marks[-1]
    at.selectbox(key="advise.hardware").select("80 GB").run()
    assert "### LoRA" in words(settled(at))


def test_a_case_that_fits_nothing_says_the_nearest(open_page: Page) -> None:
    at = settled(open_page("advisor", **(CASE | {"advise.hardware": "RTX 3060 12GB"})))
    assert "### QLoRA" in words(at)
    at = settled(open_page("advisor", **(CASE | {"advise.model": "70B"})))
    assert not at.exception


def test_every_approach_is_explained() -> None:
    assert set(advisor_view.MEANINGS) == set(options.APPROACHES)


def test_start_over_is_the_case_of_the_beginning(open_page: Page) -> None:
    at = settled(open_page("advisor", **CASE))
    at.button(key="advise.forget").click().run()
    assert not at.exception
    assert at.number_input(key="advise.examples").value == 1000
    assert at.selectbox(key="advise.hardware").value == "this machine"


def test_set_up_this_run_fills_the_form(open_page: Page) -> None:
    at = settled(open_page("advisor", **CASE))
    at.button(key="advise.start").click().run()
    assert not at.exception
    state = at.session_state
    assert state["new.model"] == "mistralai/Mistral-7B-Instruct-v0.1"
    assert state["new.method.name"] == "lora" and state["new.method.lora.alpha"] == 32
    assert state["new.train.gradient_accumulation_steps"] == 4
    assert "new.fill" not in state, "once"


def test_a_price_is_set_and_kept(open_page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    at = settled(open_page("advisor", **CASE))
    at.session_state["advise.tab"] = "Costs"
    at.run()
    assert not at.exception
    text = words(at)
    assert "What articles print" in text
    prices.keep("RTX 4090 24GB", 3.4, "2026-12-01")
    rows = {row["name"]: row["USD"] for row in advisor_tables.price_rows()}
    assert rows["RTX 4090 24GB"] == 3.4 and rows["storage"] == 0.023
    assert rows["RTX 5090 32GB"] is None, "nobody has set one"
    at.session_state["advise.tab"] = "Hardware"
    at.run()
    text = words(settled(at, "One gigabyte less"))
    assert "One gigabyte less: With 18" in text.replace("\\", "") and "RTX 4080 16GB" in text


def test_a_changed_price_is_of_today_and_its_date_can_be_changed() -> None:
    today, before, other = (datetime.date(2026, 11, day) for day in (26, 1, 9))
    rows = [
        {"name": name, "USD": usd, "Date": date}
        for name, usd, date in (("storage", 0.02, before), ("T4 16GB", None, None),
                                ("electricity", 0.3, before), ("A100 80GB", 2.0, before))
    ]  # fmt: skip

    def changed(*changes: dict[str, Any]) -> list[Any]:
        edited = [row | change for row, change in zip(rows, changes, strict=True)]
        return advisor_tables.changed_prices(rows, edited, today)

    assert changed({}, {}, {}, {}) == []
    assert changed({"USD": 0.03}, {"USD": 0.5}, {}, {}) == [
        ("storage", 0.03, today), ("T4 16GB", 0.5, today),
    ]  # fmt: skip
    assert changed({}, {"Date": other}, {"Date": other}, {"USD": 1.0, "Date": other}) == [
        ("electricity", 0.3, other), ("A100 80GB", 1.0, other),
    ], "a date alone is kept with its price; without a price there is nothing to date"  # fmt: skip
    assert changed({"USD": None}, {"USD": float("inf")}, {"Date": None}, {}) == []


def test_what_is_kept_is_shown_with_its_date_and_edits_are_over() -> None:
    key = prices.version()
    prices.keep("storage", 0.03, "2026-11-09")
    row = advisor_tables.price_rows()[1]
    assert (row["USD"], row["Date"]) == (0.03, datetime.date(2026, 11, 9))
    assert prices.version() != key, "the table forgets what was typed once it is kept"
    assert prices.current().storage.date == "2026-11-09"


def test_the_pair_is_on_equal_terms() -> None:
    from lab.advise import recommend

    case = sized(parse({"parameters": 7e9, "gpu_gb": 80, "keeps_general": True}))
    advice = recommend.recommend(case)
    assert advice.rival is Approach.FULL
    first, second = advisor_start.pair(advice, advice.rival, "builtin:persona-chats")
    assert first["method"]["name"] == "lora" and second["method"]["name"] == "full"
    assert first["data"] == second["data"] and first["model"] == second["model"]
    different = {key for key in first["train"] if first["train"][key] != second["train"].get(key)}
    assert different == {"learning_rate"}
    fitting = [advice.options[each].spec["train"]["batch_size"] for each in (Approach.LORA,
               Approach.FULL)]  # fmt: skip
    rows = first["train"]["batch_size"]
    assert rows == min(fitting) < max(fitting), "as many rows a pass as fit for both"
    assert rows * first["train"]["gradient_accumulation_steps"] == 16


def test_new_run_says_what_is_worth_knowing(open_page: Page) -> None:
    at = open_page("new_run", preset="full")
    text = words(at).replace("\\", "")
    assert "WORTH KNOWING" in text and "Base weights train without general data" in text
    assert "[C14](/claims?id=C14)" in text
    at.session_state["new.data.general_fraction"] = 0.1
    at.run()
    assert "WORTH KNOWING" not in words(at)


@pytest.mark.parametrize(
    ("fields", "about", "says"),
    [
        ({"goal": "continued pretraining"}, "pretraining", "An adapter for continued pretraining"),
        ({"goal": "knowledge", "domain_shift": "far", "error_price": "high", "gpu_gb": 80},
         "general data", "Base weights train without general data"),
        ({"variants": 2}, "merge", "Keep the adapter too"),
        ({}, "", ""),
    ],
)  # fmt: skip
def test_the_advisor_warns_of_the_mistakes_of_its_case(
    fields: dict[str, Any], about: str, says: str
) -> None:
    case = sized(parse({"parameters": 7e9, "gpu_gb": 24, **fields}))
    cautions = advisor_view._cautions(recommend.recommend(case))
    assert [each.about for each in cautions] == ([about] if about else [])
    assert all(says in each.text for each in cautions)


def test_a_pair_at_equal_epochs_is_told_to_be_unequal_work(open_page: Page) -> None:
    at = settled(open_page("advisor", **(CASE | {"advise.hardware": "80 GB"})))
    text = words(at).replace("\\", "")
    assert (
        "compared at equal epochs, which are not equal work: full takes more time and FLOPs" in text
    )


def test_the_form_warns_of_each_mistake_as_long_as_it_is_made(open_page: Page) -> None:
    at = open_page("new_run")
    for key, wrong, right, says in (
        ("new.data.objective", "pretraining", "auto", "An adapter for continued pretraining"),
        ("new.method.lora.rank", 64, 16, "Alpha is still 32 at rank 64: the update is scaled"),
    ):
        at.session_state[key] = wrong
        at.run()
        assert says in words(at).replace("\\", ""), key
        at.session_state[key] = right
        at.run()
        assert "WORTH KNOWING" not in words(at), key


def test_the_form_warns_of_a_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen()
    monkeypatch.setattr(worth_knowing_view, "st", screen)
    specs = [{"method": {"name": name}, "train": {"max_steps": 60}} for name in ("lora", "dora")]
    worth_knowing_view.of_specs(specs)
    assert any("at equal steps" in str(call) for call in screen.calls)


def test_monitor_says_what_a_run_has_cost(open_page: Page, trained: list[RunDir]) -> None:
    at = open_page("monitor", run=trained[0].id)
    line = next(text for text in words(at).splitlines() if "What this run has cost" in text)
    seconds = run_cost.cost_of(trained[0]).seconds
    assert seconds is not None and seconds > 0
    assert formatting.duration(seconds) in line and "energy not measured" in line
