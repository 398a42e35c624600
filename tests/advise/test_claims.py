"""Every claim has an answer; figures that contradict their own formula are found as such."""

from __future__ import annotations

from typing import Any

import pytest

from lab.advise import claims, findings
from lab.advise.claims import (
    Basis,
    Ruling,
    Sum,
    exactly,
    half_unit,
    judged,
    learner_errors,
    memory_rules,
    parameter_counts,
)
from lab.compare import evidence
from lab.compare.evidence import ClaimVerdict, Evidence
from lab.errors import LabError
from lab.forecasts import Forecast
from tests.advise.conftest import forecast_of

IDS = """
A1 A2 A3 A4 A5 A6 A7 A8 A9 A10 A11 A12 A13 A14
B1 B2 B3 B4 B5 B6 B7 B8 B9 B10 B11 B12 B13
C1 C2 C3 C4 C5 C6 C7 C8 C9 C10 C11 C12 C13 C14 C15 C16 C17 C18 C19 C20 C21 C22 C23 C24 C25
D1 D2 D3 D4 D5 D6
E1 E2 E3 E4
""".split()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forecasts from a table instead of the planner."""
    for module in (parameter_counts, memory_rules, learner_errors):
        monkeypatch.setattr(module, "estimate", forecast_of)


def test_every_id_is_there_with_a_function_of_its_own() -> None:
    assert sorted(claim.id for claim in claims.all_claims()) == sorted(IDS)
    assert sorted(claims.finders()) == sorted(IDS)
    assert all(claim.says and claim.topic in claims.topics() for claim in claims.all_claims())


@pytest.mark.usefixtures("quick")
def test_every_claim_has_a_value_or_says_what_it_needs() -> None:
    for claim_id in IDS:
        finding = findings.find(claim_id)
        assert finding.verdict and isinstance(finding.how, Basis)
        if finding.value == "–":
            assert finding.kind in (Ruling.OPEN, Ruling.NEEDS) and finding.detail, claim_id
        for figure in finding.figures:
            assert figure.formula, f"{claim_id}: {figure.title} has no formula"


def test_contradictions_are_computed_from_printed_numbers_alone() -> None:
    """Those that need no forecast; with others computed the list is longer."""
    b1, c24, b10, a9 = (findings.find(claim_id) for claim_id in ("B1", "C24", "B10", "A9"))
    assert {b1.kind, c24.kind, b10.kind, a9.kind} == {Ruling.CONTRADICTS}
    values = {figure.title: round(figure.value, 1) for figure in b1.figures}
    assert values == {"1B": 13.0, "3B": 39.1, "7B": 91.3, "13B": 169.5, "70B": 912.7,
                      "bf16 SGD": 6}  # fmt: skip
    assert b10.value == "7B, 24 GB, simple, several tasks: LoRA r8"


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("claim_id", "here"),
    [
        ("A2", {"70B": 840.0}),  # the low end: 12 bytes
        ("A4", {"0.5 B × 70 B": 35.0}),
        ("C2", {"full": 98.0, "LoRA's gradients": 0.034, "LoRA's optimizer": 0.067}),
        ("C4", {"least in all": 7.9, "most in all": 8.9, "adapters": 0.08}),
        ("C24", {"7B full": 98.0, "7B LoRA": 17.5, "7B QLoRA": 4.2}),
        ("D2", {"memory in D1": 2.404, "time in D1": 2.422, "memory": 3.75, "time": 1.3}),
        ("C10", {"alpha / r of the lab's default": 2.0}),
        ("C6", {"share": 100 * 0.04 / 7}),
        ("C23", {"time of a step": 1.3}),
    ],
)
def test_the_sums_of_a_claim_by_hand(claim_id: str, here: dict[str, float]) -> None:
    """From printed numbers, and from the table that stands for the planner here."""
    values = {figure.title: figure.value for figure in findings.find(claim_id).figures}
    assert {title: values[title] for title in here} == pytest.approx(here, rel=0.02)


@pytest.mark.usefixtures("quick")
def test_checkpoints_of_a_full_run_hold_the_state_of_its_optimizer() -> None:
    note = findings.find("C13").note
    assert note.startswith("5 checkpoints of a 7B full run take 3 GB of disk (0.6 GB each")


def test_counts_are_those_of_the_model_on_the_meta_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The printed counts that no formula gives, as the planner answers, in this process: one of its
    own would take longer to start than all three models."""
    from tests import answers

    def estimate(spec: dict[str, Any], device: dict[str, Any]) -> Forecast:
        answer = Forecast.from_json(answers.estimate(spec, device, {"shadow": False}))
        assert answer is not None
        return answer

    monkeypatch.setattr(parameter_counts, "estimate", estimate)
    trainable = {}
    for claim_id in ("B4", "C6", "D3"):
        finding = findings.find(claim_id)
        assert finding.kind is Ruling.CONTRADICTS
        trainable[claim_id] = int(finding.figures[0].value)
    assert trainable == {
        "B4": 28 * 16 * (3072 + 3072 + 3072 + 1024),
        "C6": 41_943_040,
        "D3": 12 * 8 * (768 + 2304),
    }
    assert "that of rank 32" in findings.find("C6").note
    assert "Mistral-7B" in findings.find("B4").note


def test_verdicts_follow_from_figures() -> None:
    near = Sum("x", 100, 100, 104, "", "f")
    far = Sum("x", 100, 200, 80, "", "f")
    assert judged([near], Basis.COMPUTED).kind is Ruling.CONFIRMED
    assert judged([near, far], Basis.COMPUTED).verdict == "off by −20 %"
    assert judged([far], Basis.COMPUTED, depends="rows").verdict == "depends on rows"
    own = exactly("y", 13.1, 13.04, "", "f")
    assert judged([near, own], Basis.COMPUTED).kind is Ruling.CONTRADICTS
    assert judged([far, own], Basis.COMPUTED, depends="rows").kind is Ruling.CONTRADICTS
    assert judged([exactly("y", 13.0, 13.04, "", "f")], Basis.COMPUTED).kind is Ruling.CONFIRMED
    assert judged([Sum("z", 1, 1, 2.5, "", "f")], Basis.COMPUTED).verdict == "off by × 2.5"


@pytest.mark.parametrize(
    ("value", "half"),
    [(13.1, 0.05), (470, 5), (98, 0.5), (6.44, 0.005), (280, 5), (0.2117, 0.00005), (2e-5, 5e-6)],
)
def test_half_of_the_last_printed_digit(value: float, half: float) -> None:
    assert half_unit(value) == pytest.approx(half)


def test_a_race_turns_an_open_claim() -> None:
    before = findings.find("C20")
    assert before.kind is Ruling.OPEN and before.how is Basis.NOT_YET
    evidence.write(
        Evidence(
            id="forgetting", title="Forgetting", date="2026-11-02", machine="a laptop",
            outcome="Full forgot.",
            verdicts={"C20": ClaimVerdict("confirmed", 0.3, "full rose by 0.3 more")},
        )
    )  # fmt: skip
    finding = findings.find("C20")
    assert finding.verdict == "confirmed" and finding.how is Basis.MEASURED
    assert (finding.value, finding.date, finding.machine) == (
        "full rose by 0.3 more", "2026-11-02", "a laptop",
    )  # fmt: skip
    assert findings.find("D4").kind is Ruling.OPEN, "another claim stays as it is"


@pytest.mark.usefixtures("quick")
def test_no_race_settles_what_contradicts_itself() -> None:
    evidence.write(
        Evidence(id="ratio", date="2026-11-02", verdicts={"D2": ClaimVerdict("off", 1.8, "1.8×")})
    )
    finding = findings.find("D2")
    assert finding.kind is Ruling.CONTRADICTS and finding.note.endswith("Measured: 1.8×")
    assert (finding.date, finding.evidence_id) == ("2026-11-02", "ratio")


def test_what_cannot_be_asked_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(spec: dict[str, Any], device: dict[str, Any]) -> Any:
        raise LabError("The planner is away.", "Ask again.")

    monkeypatch.setattr(parameter_counts, "estimate", refuse)
    finding = findings.find("B3")
    assert finding.verdict == "needs a forecast, which failed"
    assert finding.note == "The planner is away. Ask again."


def test_an_unknown_id() -> None:
    assert claims.get("c3").id == "C3"
    with pytest.raises(LabError, match="no claim 'Z9'"):
        claims.get("Z9")
