"""Whole attempts: which are made, and what each says. On a processor, whose peaks mean less."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from bench import whole_attempts
from lab import cli, methods, optimizers
from lab.data import catalog
from lab.errors import LabError
from lab.models.catalog import BUILT_IN
from lab.train import attempt


@pytest.fixture
def model(small_models: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(small_models / BUILT_IN[0].name, folder)
    rows = catalog.resolve("builtin:persona-chats").path.read_text().splitlines()[:60]
    (folder / "chats.jsonl").write_text("\n".join(rows) + "\n")
    return folder


@pytest.mark.every_method
def test_every_method_and_every_optimizer_has_an_attempt() -> None:
    cases = whole_attempts.cases()
    assert {method for method, _ in cases} == set(methods.names())
    for method in ("full", "lora", "qlora"):
        assert {rule for name, rule in cases if name == method} == set(optimizers.OPTIMIZERS)
    assert len(set(cases)) == len(cases)
    assert whole_attempts.cases(("lora", "ia3"))[:2] == [("ia3", "adamw"), ("lora", "adamw")]


def test_a_method_that_does_not_exist_is_told() -> None:
    with pytest.raises(LabError, match="Unknown method 'lorra'"):
        whole_attempts.cases(("lora", "lorra"))


@pytest.mark.parametrize(
    ("row", "code"),
    [({"error": 0.009}, 0), ({"error": -0.02}, 1), ({"failed": "x"}, 1), ({"problems": ["x"]}, 1)],
)
def test_a_bench_without_a_good_figure_has_failed(
    row: dict[str, Any], code: int, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    figures = {"predicted": 1, "measured": 1} if "error" in row else {}
    measured = {"method": "lora", "optimizer": "adamw", **figures, **row}
    monkeypatch.setattr(whole_attempts, "check_machine", lambda: None)
    monkeypatch.setattr(whole_attempts, "make_folder", lambda *_, **__: None)
    monkeypatch.setattr(whole_attempts, "measure", lambda *_: measured)
    assert cli.main(["bench", "attempts", "--only", "lora"]) == code
    assert "lora" in capsys.readouterr().out


def test_an_attempt_says_what_was_predicted_and_what_it_took(model: Path) -> None:
    lines: list[str] = []
    row = whole_attempts.measure(model, "lora", "adamw", lines.append)
    assert row["error"] == row["predicted"] / row["measured"] - 1
    assert lines == [f"lora, adamw: {row['error']:+.2%}"]
    assert set(row["peaks"]) >= {"load", "evaluate", "forward", "backward", "optimizer", "save"}
    assert set(row["phases"]) >= set(row["peaks"]) - {"sample"} and row["phases"]["forward"] > 0
    assert len(row["losses"]) == whole_attempts.STEPS
    json.dumps(row)


def test_what_cannot_run_or_ends_with_an_error_is_told(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = whole_attempts.measure(model, "lora", "paged_adamw8bit", print)
    assert "no GPU here" in refused["problems"][0] and "error" not in refused

    def breaks(self: attempt.Attempt) -> str:
        raise RuntimeError("no [memory].\nAt all")

    monkeypatch.setattr(attempt.Attempt, "run_training", breaks)
    failed = whole_attempts.measure(model, "lora", "adamw", print)
    assert failed["failed"] == "RuntimeError: no [memory]" and "measured" not in failed


def test_the_home_of_the_attempts_is_theirs_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def make(folder: Path, shape: str, rows: int, length: int) -> None:
        assert (shape, length) == ("small", whole_attempts.LENGTH) and rows > 0

    monkeypatch.setattr(whole_attempts, "make_folder", make)
    before = os.environ["LAB_HOME"]
    with whole_attempts.home_with_model("small") as model:
        home = Path(os.environ["LAB_HOME"])
        assert model.parent == home != Path(before)
    assert os.environ["LAB_HOME"] == before and not home.exists()


def test_without_a_gpu_nothing_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "attempts"]) == 2
    assert "there is none here" in capsys.readouterr().err
