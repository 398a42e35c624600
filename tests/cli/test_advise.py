"""advise, costs and claims in the terminal, as JSON."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lab import cli
from lab.advise import options
from lab.advise.claims import memory_rules, parameter_counts
from tests.advise.conftest import forecast_of

LabJson = Callable[..., Any]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (options, parameter_counts, memory_rules):
        monkeypatch.setattr(module, "estimate", forecast_of)


def test_advise_from_a_file_and_from_stdin(
    lab_json: LabJson, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = {"goal": "behaviour", "parameters": 7e9, "examples": 3000, "gpu_gb": 24,
            "complexity": "simple", "tasks": 2}  # fmt: skip
    file = tmp_path / "case.json"
    file.write_text(json.dumps(case))
    answer = lab_json("advise", str(file))
    rules = {rule["claim"]: rule["answer"] for rule in answer["rules"]}
    assert rules["B10"] == "LoRA r8"
    assert answer["recommendation"]["method"] == "lora"
    stdin = io.TextIOWrapper(io.BytesIO(json.dumps(case).encode()))
    monkeypatch.setattr(sys, "stdin", stdin)
    assert lab_json("advise", "-") == answer
    long = f"{{{' ' * 100_000}}}".encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(long)))
    assert cli.main(["advise", "-"]) == 2, "No more is read than a case may have."


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "is not JSON"),
        ("[]", "must be an object"),
        ('{"goal": "fame", "examples": 0}', "2 problems"),
        ('{"parameters": 7e9, "model": "gpt2"}', "Give one of them"),
    ],
)
def test_bad_cases_are_refused_in_words(
    text: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "case.json"
    file.write_text(text)
    assert cli.main(["advise", str(file), "--json"]) == 2
    captured = capsys.readouterr()
    assert says in captured.err and "Traceback" not in captured.err
    assert json.loads(captured.out)["error"]


def test_costs_and_claims(lab_json: LabJson, capsys: pytest.CaptureFixture[str]) -> None:
    bill = lab_json("costs")
    assert {item["key"] for item in bill["costs"]} == {
        "training", "experiments", "checkpoints", "variants", "serving",
    }  # fmt: skip
    assert {row["claim"] for row in bill["printed"]} >= {"A6", "A7", "B11", "C16", "C17", "C18"}
    listed = lab_json("claims")["claims"]
    assert len(listed) == 62
    assert all(set(row) == {"id", "says", "value", "how", "verdict"} for row in listed)
    assert all(row["value"] and row["verdict"] for row in listed)
    without = [row for row in listed if row["value"] == row["verdict"]]
    assert without and all(row["value"] != "–" for row in listed), "A verdict is a value."
    assert cli.main(["claims", "C18"]) == 0
    assert "140" in capsys.readouterr().out
