"""Which settings are ranked first, and the reasons that people read beside the others."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from lab.forecast import settings_search
from lab.forecast.trace import traced_step
from lab.forecasts import Candidate
from tests.answers import plan


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    from transformers import LlamaConfig

    place = tmp_path_factory.mktemp("plan")
    LlamaConfig(
        vocab_size=4096, hidden_size=256, intermediate_size=768, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True,
    ).save_pretrained(place)  # fmt: skip
    return str(place)


def spec_of(folder: str, method: Any = "full", **train: Any) -> dict[str, Any]:
    return {
        "model": folder,
        "method": method,
        "data": {"max_length": 1024},
        "train": {"batch_size": 2, "gradient_accumulation_steps": 3, **train},
    }


# one row in one pass: fewer steps to trace where rows are not what a test is about
ONE_ROW = {"batch_size": 1, "gradient_accumulation_steps": 1}


def needed(choice: dict[str, Any]) -> int:
    """Bytes: what the allocator reserves counts where the step was traced."""
    return max(choice["peak_bytes"], choice["reserved_bytes"] or 0)


@pytest.fixture(scope="module")
def roomy(folder: str) -> list[dict[str, Any]]:
    """The settings for a device that all of them fit."""
    choices: list[dict[str, Any]] = plan(spec_of(folder), {"memory_bytes": 10**12})["choices"]
    return choices


@pytest.fixture(scope="module")
def tight(folder: str, roomy: list[dict[str, Any]]) -> dict[str, Any]:
    """The settings for a device that some of them do not fit."""
    sizes = [choice["peak_bytes"] for choice in roomy]
    return plan(spec_of(folder), {"memory_bytes": int((min(sizes) + max(sizes)) / 2 / 0.94)})


def test_each_choice_says_by_how_much_it_is_slower_smaller_or_too_large(
    tight: dict[str, Any],
) -> None:
    best, *others = tight["choices"]
    room = 0.94 * tight["device_bytes"]
    assert best["fits"] and best["why"].startswith("fastest that fits")
    seen = set()
    for choice in others:
        why = choice["why"]
        if not choice["fits"]:
            over = re.match(r"([\d.]+) GB too much", why)
            assert over, why
            assert float(over[1]) == pytest.approx((needed(choice) - room) / 1e9, abs=0.006)
            seen.add("too large")
            continue
        amount = re.search(r"([\d.]+) GB (less|more)", why)
        assert amount, why
        apart = (choice["peak_bytes"] - best["peak_bytes"]) / 1e9
        assert float(amount[1]) == pytest.approx(abs(apart), abs=0.006), why
        if abs(apart) > 0.006:
            assert amount[2] == ("more" if apart > 0 else "less"), f"{why}; it is {apart:+.3f} GB."
            seen.add(amount[2])
        apart_by = re.match(r"([\d.]+) % (slower|faster)", why)
        share = 100 * (best["tokens_per_s"] - choice["tokens_per_s"]) / best["tokens_per_s"]
        signed = float(apart_by[1]) * (1 if apart_by[2] == "slower" else -1) if apart_by else 0.0
        assert signed == pytest.approx(share, abs=0.6), why
    assert seen == {"too large", "less", "more"}, "Every kind of reason occurs."


def test_every_choice_trains_the_same_rows_and_says_so_in_its_changes(
    tight: dict[str, Any],
) -> None:
    splits = set()
    for choice in tight["choices"]:
        changes = choice["changes"]
        splits.add((changes["train.batch_size"], changes["train.gradient_accumulation_steps"]))
        for key, value in changes.items():
            assert choice[key.removeprefix("train.")] == value, key
    assert splits == {(1, 6), (2, 3), (3, 2), (6, 1)}, "Six rows a step, in every way."


def test_those_that_fit_come_first_by_speed_then_the_rest_by_what_they_need(
    tight: dict[str, Any],
) -> None:
    fitting = [choice["fits"] for choice in tight["choices"]]
    assert fitting == sorted(fitting, reverse=True) and not fitting[-1]
    tokens_per_s = [
        choice["tokens_per_s"]
        for choice in tight["choices"]
        if choice["fits"] and choice["is_requested_optimizer"]
    ]
    assert tokens_per_s == sorted(tokens_per_s, reverse=True) and tokens_per_s[0] > tokens_per_s[-1]
    for choice in tight["choices"]:
        assert choice["fits"] is (needed(choice) <= int(0.94 * tight["device_bytes"])), (
            "What is chosen leaves six per cent of the device free."
        )


def test_another_optimizer_leads_only_where_it_is_clearly_faster(
    folder: str, roomy: list[dict[str, Any]]
) -> None:
    assert all(choice["fits"] for choice in roomy)
    assert roomy[0]["optimizer"] == "adamw", "Everything fits; the rule that is asked for stays."
    other = [choice for choice in roomy if choice["optimizer"] == "adamw8bit"]
    assert other and all("instead of the chosen optimizer" in choice["why"] for choice in other)
    assert {
        choice["optimizer"]
        for choice in plan(spec_of(folder, optimizer="sgd", **ONE_ROW), {"memory_bytes": 10**12})[
            "choices"
        ]
    } == {"sgd"}


def test_another_rate_and_length_of_the_run_are_planned_without_tracing_again(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = {"memory_bytes": 10**12}
    first = plan(spec_of(folder, **ONE_ROW), room)["choices"]

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("It was traced before.")

    monkeypatch.setattr(traced_step, "record", never)
    again = spec_of(folder, learning_rate=3e-5, max_steps=77, **ONE_ROW)
    assert plan(again, room)["choices"] == first


def test_the_energy_of_a_million_tokens_is_that_of_the_fastest_choice(folder: str) -> None:
    answer = plan(spec_of(folder, **ONE_ROW), {"gpu": "RTX 3090 24GB"})
    hours = 1e6 / answer["choices"][0]["tokens_per_s"] / 3600
    assert answer["energy_wh_per_million_tokens"] == pytest.approx(350 * hours, rel=0.01), "350 W"


def test_what_cannot_be_done_is_no_choice(folder: str, tmp_path: Path) -> None:
    from transformers import Gemma2Config

    room = {"memory_bytes": 10**12}
    inside = spec_of(
        folder, optimizer="sgd_in_backward", max_grad_norm=0, gradient_accumulation_steps=1
    )
    choices = plan(inside, room)["choices"]
    assert {choice["gradient_accumulation_steps"] for choice in choices} == {1}, (
        "Nothing is there to add up."
    )
    assert {choice["batch_size"] for choice in choices} == {2}
    prefix = plan(spec_of(folder, "prefix", **ONE_ROW), room)["choices"]
    assert {choice["activation_checkpointing"] for choice in prefix} == {"off"}
    Gemma2Config(
        vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16,
    ).save_pretrained(tmp_path)  # fmt: skip
    capped = spec_of(str(tmp_path), loss_implementation="fused", **ONE_ROW)
    choices = plan(capped, room)["choices"]
    assert {choice["loss_implementation"] for choice in choices} == {"plain"}, (
        "It caps its logits after the head."
    )


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Twelve layers whose weights and state matter beside what they keep."""
    from transformers import LlamaConfig

    place = tmp_path_factory.mktemp("deep")
    LlamaConfig(
        vocab_size=8192, hidden_size=512, intermediate_size=1536, num_hidden_layers=12,
        num_attention_heads=8, num_key_value_heads=4, tie_word_embeddings=True,
    ).save_pretrained(place)  # fmt: skip
    return str(place)


@pytest.fixture(scope="module")
def roomy_for_deep(deep: str) -> list[dict[str, Any]]:
    """The settings for one row of the deep model on a device that all of them fit."""
    value = spec_of(deep, **ONE_ROW)
    choices: list[dict[str, Any]] = plan(value, {"memory_bytes": 10**11})["choices"]
    return choices


def test_few_checkpointed_layers_are_preferred_to_another_optimizer(
    deep: str, roomy_for_deep: list[dict[str, Any]]
) -> None:
    """They cost less than what another rule must gain to lead; all layers would cost more."""
    value = spec_of(deep, **ONE_ROW)
    sizes = {
        (choice["optimizer"], choice["activation_checkpointing"]): needed(choice)
        for choice in roomy_for_deep
        if choice["loss_implementation"] == "fused"
    }
    room = sizes["adamw", "off"] - 2_000_000
    assert room > 1.05 * sizes["adamw8bit", "off"], "The other rule fits without checkpointing."
    best = plan(value, {"memory_bytes": int(room / 0.94)})["choices"][0]
    assert best["optimizer"] == "adamw" and best["checkpointed_layers"] in (1, 2, 3), best


def test_sgd_is_offered_where_nothing_else_fits(
    deep: str, roomy_for_deep: list[dict[str, Any]]
) -> None:
    value = spec_of(deep, **ONE_ROW)
    assert all(choice["optimizer"] != "sgd" for choice in roomy_for_deep)
    least = min(needed(choice) for choice in roomy_for_deep)
    choices = plan(value, {"memory_bytes": int(0.95 * least / 0.94)})["choices"]
    assert choices[0]["optimizer"] == "sgd" and choices[0]["fits"], choices[0]
    assert "instead of the chosen optimizer" in choices[0]["why"]
    assert not any(choice["fits"] for choice in choices if choice["optimizer"] != "sgd")


def test_what_does_not_fit_is_told_by_what_the_allocator_reserves() -> None:
    choice = Candidate(peak_bytes=9 * 10**9, reserved_bytes=11 * 10**9)
    (explained,) = settings_search._explained([choice], 10 * 10**9)
    assert explained.why == "1.00 GB too much"


def test_another_optimizer_that_is_hardly_faster_comes_second() -> None:
    requested = Candidate(
        optimizer="adamw", tokens_per_s=100.0, fits=True, is_requested_optimizer=True
    )
    ranks = [
        settings_search._rank(
            Candidate(
                optimizer="adamw8bit", tokens_per_s=speed, fits=True, is_requested_optimizer=False
            )
        )
        for speed in (104.0, 106.0)
    ]
    assert ranks[1] < settings_search._rank(requested) < ranks[0], (
        "by more than a twentieth it leads"
    )
