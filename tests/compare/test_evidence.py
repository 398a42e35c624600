"""Evidence goes to a file and comes back whole; what is no evidence is passed over."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lab.compare import evidence, race_outcome
from lab.compare.evidence import ClaimVerdict, ContestantFigures, Evidence, SeedFigures
from lab.errors import LabError

STORED = Evidence(
    id="mixing-against-forgetting",
    title="Mixing against forgetting",
    claims=("C14", "C20"),
    question="Does general text in the data keep general answers?",
    contestants=(
        ContestantFigures(
            "Full",
            "full",
            {"data.general_fraction": 0.0},
            (
                SeedFigures(0, "20260101-000000-full-abcd", "done", {"forgetting": 0.5}),
                SeedFigures(1, "20260101-000001-full-abcd", "failed", {}),
                SeedFigures(2, "20260101-000002-full-abcd", "done", {"forgetting": 0.25}),
            ),
        ),
    ),
    outcome="Full forgets less with a tenth of general text.",
    verdicts={"C14": ClaimVerdict("confirmed", -0.25, "0.25 ± 0.10 less.")},
    date="2026-01-02",
    versions={"torch": "2"},
    minutes=12.5,
)


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "shipped"
    folder.mkdir()
    monkeypatch.setattr(evidence, "shipped_folder", lambda: folder)
    return folder


def test_evidence_comes_back_as_it_was_written(
    shipped: Path, lab_json: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = evidence.write(STORED)
    assert evidence.read_file(file) == STORED
    assert evidence.all_evidence() == [STORED] == evidence.of_claim("C14")
    looks: list[int] = []
    monkeypatch.setattr(race_outcome, "keep_ended", lambda: looks.append(1))
    assert evidence.of_claim("C20") == [], "It names the claim, and has no verdict on it."
    (answer,) = lab_json("evidence")["evidence"]
    assert looks == [1], "Races that have ended meanwhile are evaluated first."
    assert answer["verdicts"]["C14"] == {
        "verdict": "confirmed", "value": -0.25, "sentence": "0.25 ± 0.10 less.",
    }  # fmt: skip
    assert STORED.contestants[0].mean("forgetting") == 0.375, "Of the seeds that have it."
    assert STORED.contestants[0].mean("eval_loss") is None


def test_what_was_measured_here_replaces_what_was_shipped(shipped: Path) -> None:
    (shipped / f"{STORED.id}.json").write_text(json.dumps(STORED.to_json()))
    other = replace(STORED, id="older", date="2025-01-01")
    (shipped / "older.json").write_text(json.dumps(other.to_json()))
    assert evidence.all_evidence() == [STORED, other], "The newest first."
    here = replace(STORED, machine="mine", date="2026-03-01")
    evidence.write(here)
    assert evidence.all_evidence() == [here, other]


@pytest.mark.parametrize(
    "stored",
    [
        "no JSON",
        json.dumps([1]),
        json.dumps(replace(STORED, id="another").to_json()),
        json.dumps(replace(STORED, verdicts={"C1": ClaimVerdict("certain")}).to_json()),
    ],
)
def test_what_is_no_evidence_is_passed_over(shipped: Path, stored: str) -> None:
    (shipped / f"{STORED.id}.json").write_text(stored)
    assert evidence.all_evidence() == []


def test_the_machine_is_told_with_its_cards_cores_and_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    facts = SimpleNamespace(processor="AMD EPYC 7B13", cores=2, memory_bytes=8_300_000_000, gpus=())
    monkeypatch.setattr(evidence.host, "describe", lambda: facts)
    assert evidence.machine_in_words() == "AMD EPYC 7B13, 2 cores, 8.3 GB"
    facts.gpus = (SimpleNamespace(name="NVIDIA L4", memory_bytes=24_000_000_000),)
    assert evidence.machine_in_words() == "NVIDIA L4, 24 GB; AMD EPYC 7B13, 2 cores, 8.3 GB"


def test_an_id_is_a_name_of_a_file(shipped: Path) -> None:
    for name in ("../x", "", "A", "a/b", "a" * 81):
        with pytest.raises(LabError, match="cannot name evidence"):
            evidence.write(replace(STORED, id=name))


def test_shipped_evidence_has_its_figures_machine_and_code() -> None:
    for file in evidence.shipped_folder().glob("*.json"):
        each = evidence.read_file(file)
        assert each is not None, f"{file.name} is no evidence"
        assert set(each.verdicts) == set(each.claims), f"{file.name} says nothing of a claim"
        assert each.machine and each.date and each.versions and each.minutes > 0
        assert evidence.EVIDENCE_ID.fullmatch(each.code), f"{file.name} names no code"
        for contestant in each.contestants:
            assert any(seed.figures for seed in contestant.seeds), contestant.name
