"""What the memory bench measures, and what it makes of it."""

from __future__ import annotations

import pytest

from bench import estimate_accuracy
from lab import methods
from lab.forecast.trace.meta_model import with_layers


@pytest.mark.every_method
def test_the_matrix_holds_every_method_and_nothing_that_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = estimate_accuracy.Case.config  # what is refused shows in two layers as in thirty
    monkeypatch.setattr(
        estimate_accuracy.Case, "config", lambda case: with_layers(whole(case), range(2))
    )
    cases = list(estimate_accuracy.matrix(("gpt2", "SmolLM2-135M")))
    assert {case.method for case in cases if case.model == "SmolLM2-135M"} == set(methods.names())
    on_gpt2 = {case.method for case in cases if case.model == "gpt2"}
    assert "lora" in on_gpt2 and not on_gpt2 & {"loha", "lokr", "oft"}, "no Conv1D for these"
    assert not [case for case in cases if case.method == "prefix" and case.checkpointing == "on"]
    for name in methods.names():  # lengths go with each other
        lengths = [case.length for case in cases if case.method == name]
        assert lengths.count(256) == lengths.count(1024) > 0, name
    types = {case.method: case.adapters for case in cases}
    assert types["lora"] == types["qlora"] == "bfloat16" and types["prompt"] == "float32"


def test_a_broken_promise_is_counted() -> None:
    row = {"source": "repeated layers", "fits": True, "fitted": True}
    rows = [
        {**row, "error": 0.002}, {**row, "error": -0.02}, {**row, "error": 0.05},
        {**row, "error": None, "fitted": False},
        {**row, "error": None, "fits": False, "fitted": False},
    ]  # fmt: skip
    summary = estimate_accuracy.summary(rows)
    assert (summary["cases"], summary["fitted"], summary["said_to_fit_but_did_not"]) == (5, 3, 1)
    assert summary["median_error"] == 0.02 and summary["worst_error"] == 0.05
    assert summary["within_1_percent"] == 1 / 3 and summary["within_3_percent"] == 2 / 3


def test_drawn_cases_are_possible_and_the_same_for_a_seed() -> None:
    drawn = estimate_accuracy.draw(12, 5)
    assert drawn == estimate_accuracy.draw(12, 5) != estimate_accuracy.draw(12, 6)
    assert {case.adapters for case in drawn} == {"float32", "bfloat16"}


def test_families_that_no_shipped_config_has_are_drawn_and_traced() -> None:
    """A hybrid with the defaults that it takes, and one that is refused in words."""
    assert {"gemma2", "mixtral", "bamba"} <= estimate_accuracy.FAMILIES.keys()
    drawn = {case.model for case in estimate_accuracy.draw(16, 1)}
    assert drawn & estimate_accuracy.FAMILIES.keys()
    case = estimate_accuracy.Case("mixtral", "lora", 1, 128, "off", "fused")
    assert case.spec().method["dropout"] == 0.0, "As a run would have it."
    lines: list[str] = []
    one = [estimate_accuracy.Case("bamba", method, 1, 128, "off", "fused") for method in
           ("prefix", "lora")]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(estimate_accuracy, "draw", lambda count, seed: one)
        report = estimate_accuracy.grid(2, 0, lines.append, whole=False)
    assert (report["cases"], report["refused"], report["untraced_that_fit"]) == (1, 1, 0)
    assert report["outline_within_2.5_percent"] == report["plan_within_2.5_percent"] == 1.0
    assert "refused" in lines[0] and "step fails" in lines[0]
