"""The bench of bad input: a share of its cases here, and that it sees what it is for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bench import hostile
from bench.hostile import specs
from bench.hostile.case import Case
from lab import cli
from lab.errors import LabError


@pytest.fixture(scope="module")
def report() -> hostile.Report:
    messages: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hostile, "LIMIT_S", 60.0)  # beside other tests, a good case takes a while
        report = hostile.hostile(60, seed=7, tell=messages.append)
    assert len(messages) == 6, "each kind of input is told"
    return report


def test_nothing_raises_hangs_or_is_wrongly_taken(report: hostile.Report) -> None:
    assert report.tracebacks == [], "a person would see a traceback"
    assert report.hangs == [], "a person would wait for good"
    assert report.wrong == [], "this input is taken although it is wrong, or the other way round"
    assert report.is_clean and report.failures == []


def test_every_kind_of_input_is_tried(report: hostile.Report) -> None:
    assert sum(report.kinds.values()) == report.cases >= 55
    assert {"spec", "--set", "spec file", "archive", "run directory", "config", "request"} <= set(
        report.kinds
    )
    assert report.refused > 30


def outcome(act: Callable[[], object], expected: str = "refused") -> hostile.Report:
    report = hostile.Report(0)
    hostile._try(Case("kind", "name", act, expected), report)
    return report


def test_the_bench_sees_what_it_is_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise LabError("No.")

    def raise_it() -> None:
        raise ValueError("Python's words")

    def hang() -> None:
        while True:
            try:
                sum(range(1000))
            except Exception:  # nobody may swallow the end of a case
                continue

    assert outcome(refuse).is_clean and outcome(refuse).refused == 1
    assert outcome(refuse, "accepted").wrong and outcome(lambda: 1).wrong
    assert outcome(lambda: 1, "accepted").is_clean and outcome(lambda: 1, "either").is_clean
    assert "ValueError: Python's words" in outcome(raise_it).tracebacks[0]
    monkeypatch.setattr(hostile, "LIMIT_S", 0.2)
    assert outcome(hang).hangs and not outcome(hang).is_clean


def test_another_seed_makes_other_cases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import random

    names = []
    for number, seed in enumerate((1, 1, 2)):
        folder = tmp_path / str(number)
        folder.mkdir()
        with specs.prepared(folder, random.Random(seed), 40) as cases:
            names.append([case.name for case in cases])
    assert names[0] == names[1] != names[2] and len(names[0]) == 40


def test_the_verb_fails_when_a_case_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report = hostile.Report(0, cases=3, refused=2, wrong=["[spec] is taken"])
    monkeypatch.setattr(hostile, "hostile", lambda *_: report)
    assert cli.main(["bench", "hostile"]) == 1
    assert "wrong: [spec] is taken" in capsys.readouterr().out
    report.wrong.clear()
    assert cli.main(["bench", "hostile", "--json"]) == 0
    assert cli.main(["bench", "hostile", "--cases", "0"]) == 2
