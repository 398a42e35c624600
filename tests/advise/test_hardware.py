"""Cards that hold a run, and what a gigabyte less changes."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from lab import gpu_table
from lab.advise import hardware, options
from lab.advise.case import parse, sized
from lab.advise.options import forecast_option
from lab.advise.rules import Approach

pytestmark = pytest.mark.usefixtures("no_planner")


@pytest.mark.parametrize(
    ("size", "cards"),
    [
        (24.0, "one RTX 4090"),
        (24.1, "two RTX 4090 or an A6000"),
        (80.0, "one A100 80GB"),
        (160.0, "two A100 80GB"),
        (160.5, "3 A100 80GB"),
        (240.0, "3 A100 80GB"),
        (240.1, "4 A100 80GB"),
        (846.6, "11 A100 80GB"),
    ],
)
def test_b2(size: float, cards: str) -> None:
    assert hardware.b2_step(int(size * 1e9)) == cards


def test_cards_and_the_smallest() -> None:
    case = sized(parse({"parameters": 7e9, "gpu": "RTX 4090 24GB", "examples": 3000}))
    lora = forecast_option(case, Approach.LORA)
    rows = {row.card.name: row for row in hardware.cards(lora, case)}
    assert len(rows) == len(gpu_table.GPUS)
    assert not rows["T4 16GB"].holds, "15 GiB less the context are 15.8 GB"
    assert rows["RTX 4080 16GB"].holds and not rows["RTX 4080 16GB"].comfortably
    assert rows["RTX 4090 24GB"].comfortably
    card = hardware.smallest(list(rows.values()))
    assert card is not None and card.name == "RTX 4080 16GB"
    assert not rows["V100 16GB"].holds, "float32 there, which takes twice as much"
    assert not rows["V100 32GB"].comfortably
    assert all(not rows[gpu.name].holds for gpu in gpu_table.GPUS if gpu.usable_bytes < 16e9)
    assert lora.seconds is not None
    assert rows["RTX 4090 24GB"].hours == pytest.approx(lora.seconds / 3600)
    assert rows["A100 80GB"].hours == pytest.approx(lora.seconds / 3600 * 165.2 / 312)
    assert hardware.smallest(hardware.cards(forecast_option(case, Approach.FULL), case)) == (
        gpu_table.get("A100 80GB")
    )
    hours = lora.seconds / 3600
    assert rows["RTX 4090 24GB"].usd == pytest.approx(hours * 0.34), "0.34 USD an hour"
    least = min((row.usd, row.card.name) for row in rows.values() if row.usd is not None)
    assert hardware.cheapest(list(rows.values())) == f"{least[1]}: {least[0]:.2f} USD"


def test_a_card_holds_what_a_run_may_take_of_it_and_not_what_the_box_says() -> None:
    case = sized(parse({"parameters": 7e9, "gpu": "RTX 4090 24GB"}))
    lora = dataclasses.replace(forecast_option(case, Approach.LORA), need_bytes=23_500_000_000)
    rows = {row.card.name: row for row in hardware.cards(lora, case)}
    assert rows["RTX 4090 24GB"].holds and not rows["A10 24GB"].holds, "24 GB with ECC are 23.2"
    assert rows["A10 24GB"].hours is None and rows["A10 24GB"].usd is None


def test_a_gigabyte_less(monkeypatch: pytest.MonkeyPatch) -> None:
    case = sized(parse({"parameters": 7e9, "gpu": "RTX 4090 24GB"}))
    lora = forecast_option(case, Approach.LORA)  # 4 rows: 19 GB
    assert hardware.one_gigabyte_less(case, lora) == ("With 18.0 GB: 2 rows a pass instead of 4.")
    tight = forecast_option(
        sized(parse({"parameters": 7e9, "gpu": "RTX 4080 16GB"})), Approach.LORA
    )
    less = hardware.one_gigabyte_less(case, tight)
    assert "With 15.0 GB it does not fit any more" in less and "recomputed: QLoRA, a" in less
    full, of_two_rows = (
        forecast_option(sized(parse({"parameters": 7e9, "gpu_gb": size})), Approach.FULL)
        for size in (60, 61)
    )
    assert "recomputed: LoRA, a" in hardware.one_gigabyte_less(case, full), "full has LoRA below it"
    less = hardware.one_gigabyte_less(case, of_two_rows)
    assert less == "With 60.0 GB: 1 row a pass instead of 2."

    def refuse(spec: dict[str, Any], device: dict[str, Any]) -> Any:
        raise AssertionError("not asked")

    monkeypatch.setattr(options, "estimate", refuse)
    assert hardware.one_gigabyte_less(case, options.Option(Approach.LORA, {})) == ""
