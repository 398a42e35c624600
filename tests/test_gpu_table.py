"""The table of GPUs in the units of its makers, and the rules of thumb by hand."""

from __future__ import annotations

import pytest

from lab import gpu_table
from lab.forecast import rules_of_thumb

GB, GIB = 10**9, 2**30


@pytest.mark.parametrize(
    ("name", "gib", "watts", "tflops", "gb_s"),
    [("T4 16GB", 15.0, 70, 65, 320), ("H100 80GB", 79.2, 700, 989, 3350)],
)
def test_a_cards_figures_are_bytes_and_operations(
    name: str, gib: float, watts: float, tflops: float, gb_s: float
) -> None:
    card = gpu_table.get(name)
    assert card.memory_bytes == pytest.approx(gib * 1024**3)
    assert card.flops == tflops * 10**12 and card.bandwidth == gb_s * 10**9
    assert card.watts == watts
    assert 0.3 * GB <= card.context_bytes <= 0.8 * GB
    assert card.usable_bytes + card.context_bytes == card.memory_bytes, (
        "CUDA's context is gone before the first tensor."
    )


def test_only_what_is_older_than_ampere_has_no_bf16() -> None:
    without = {card.name for card in gpu_table.GPUS if not card.has_bf16}
    assert without == {"T4 16GB", "V100 16GB", "V100 32GB"}
    assert all((card.year < 2020) == (card.name in without) for card in gpu_table.GPUS)


@pytest.mark.parametrize(
    ("driver", "name"),
    [
        ("NVIDIA A10G", "A10G 24GB"),
        ("NVIDIA A10", "A10 24GB"),
        ("NVIDIA H100 PCIe", "H100 PCIe 80GB"),
        ("NVIDIA H100 80GB HBM3", "H100 80GB"),
        ("NVIDIA L40S", "L40S 48GB"),
        ("Tesla T4", "T4 16GB"),
        ("NVIDIA GeForce RTX 4060 Ti", "RTX 4060 Ti 16GB"),
    ],
)
def test_a_drivers_name_is_the_card_whose_name_it_holds_most_of(driver: str, name: str) -> None:
    card = gpu_table.known(driver)
    assert card is not None and card.name == name
    assert gpu_table.known("Voodoo 2") is None


def test_kinds_of_runs_that_the_rules_tell_apart() -> None:
    assert rules_of_thumb.kind_of(100, 100, 16) == "full"
    assert rules_of_thumb.kind_of(2, 100, 16) == "lora"
    assert rules_of_thumb.kind_of(2, 100, 8) == rules_of_thumb.kind_of(2, 100, 4) == "qlora"


def test_rules_count_the_base_and_interpolate_between_printed_sizes() -> None:
    lora = rules_of_thumb.rules(8 * 10**9, "lora", base=7 * 10**9)
    assert lora["A4"] == 28 * GB, "Four bytes for each of the base's seven billion."
    assert lora["C3-lora"] == 18 * GB and lora["B10-lora"] == 16 * GB
    assert lora["C2-lora"] == pytest.approx(14.9 * GB)
    # 8.5 B lies a quarter of the way from 7 B to 13 B: 98 + (180 - 98) / 4
    assert rules_of_thumb.rules(8_500_000_000, "full")["C3"] == pytest.approx(118.5 * GB)
    assert rules_of_thumb.rules(3_500_000_000, "qlora")["C3-qlora"] == pytest.approx(5 * GB)
    assert rules_of_thumb.rules(140 * 10**9, "full")["C3"] == pytest.approx(1920 * GB)


def test_cards_that_hold_a_run_smallest_and_oldest_first() -> None:
    names = [gpu.name for gpu in gpu_table.holding(60_000_000_000)]
    assert names[:2] == ["A100 80GB", "H100 PCIe 80GB"] and names[-1] == "B200 180GB"
    assert gpu_table.holding(10**12) == []
    assert gpu_table.get("RTX 4060 Ti 16GB").label_gb == 16
    assert all(gpu.usable_bytes < gpu.label_gb * 2**30 for gpu in gpu_table.GPUS)
