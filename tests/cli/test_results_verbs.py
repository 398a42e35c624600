"""combine and push on the command line: what is checked first, confirmed, and printed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from lab import background_job, cli
from lab.background_job import JobRecord
from lab.cli import compare, rank, score
from lab.compare import comparison
from lab.compare.scored_rows import ScoredSet
from lab.evals.score_sheets import ScoredAnswer, ScoredModel, ScoredQuestion, ScoreSheet
from lab.export import combine, push
from lab.hub import credentials
from lab.paths import RunDir
from lab.rank.measure import RankReport
from lab.rank.spectrum import MatrixSpectrum
from tests.compare.recorded import record, score_run


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("LAB_HUB_OFFLINE", "0")
    credentials.give("hf_test")
    yield
    credentials.adopt(None)


def test_combine_takes_equal_weights_unless_told(
    trained: list[RunDir], monkeypatch: pytest.MonkeyPatch, lab_json: Callable[..., Any]
) -> None:
    wanted: list[combine.Combination] = []
    monkeypatch.setattr(combine, "check", wanted.append)
    combined = combine.CombinedResult("x", 4, 100, {"equal": True}, {"x": 1.0}, 0.0, "")
    monkeypatch.setattr(combine, "combine", lambda combination: combined)
    ids = [run.id for run in trained]
    assert lab_json("combine", *ids) == asdict(combined)
    lab_json("combine", *ids, "--weights", "0.7,-0.3", "--type", "ties", "--density", "0.2")
    assert wanted[0] == combine.Combination(tuple(ids), (0.5, 0.5))
    assert wanted[1] == combine.Combination(tuple(ids), (0.7, -0.3), "ties", 0.2)


def test_combine_refuses_before_anything_is_loaded(
    trained: list[RunDir], capsys: pytest.CaptureFixture[str]
) -> None:
    full, lora = trained
    for arguments, says in (
        ([lora.id], "2 to 8 different results"),
        ([lora.id, full.id], "Full fine-tuning leaves no adapter"),
        ([lora.id, full.id, "--weights", "a,b"], "are no numbers"),
        ([lora.id, full.id, "--weights", "nan,1"], "weight nan"),
        ([lora.id, "20260101-000000-lora-zzzz"], "There is no run"),
    ):
        assert cli.main(["combine", *arguments]) == 2
        assert says in capsys.readouterr().err, arguments


def test_push_is_confirmed_by_the_name(
    trained: list[RunDir],
    online: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    lora, started = trained[1], []

    def start(run: RunDir, name: str, what: str, **more: Any) -> None:
        started.append((run.id, name, what, more))

    monkeypatch.setattr(push, "start", start)
    result = {
        "url": "https://hub/me/x", "is_private": True, "commit": "c1", "verified": 7, "files": 7,
    }  # fmt: skip
    monkeypatch.setattr(
        background_job, "wait", lambda file, tell: JobRecord(finish="done", result=result)
    )
    command = ["push", lora.id, "me/x", "--private"]
    assert cli.main(command) == 2
    assert "Nobody is there to confirm the upload to me/x as private" in capsys.readouterr().err
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda prompt: "me/y")
    assert cli.main(command) == 2 and started == []
    out = capsys.readouterr()
    assert "another name" in out.err and "will be private" in out.out and "README.md" in out.out
    monkeypatch.setattr("builtins.input", lambda prompt: "me/x")
    assert cli.main(command) == 0
    assert started == [(lora.id, "me/x", "result", {"private": True, "update": False})]
    out = capsys.readouterr()
    assert "https://hub/me/x, private, commit c1" in out.out and "7 of 7 files" in out.out
    assert cli.main([*command, "--yes", "--update"]) == 0
    assert started[-1][3] == {"private": True, "update": True}
    failed = JobRecord(finish="failed", error="The Hub is gone.", hint="Wait.")
    monkeypatch.setattr(background_job, "wait", lambda file, tell: failed)
    assert cli.main([*command, "--yes"]) == 2
    assert "The Hub is gone." in capsys.readouterr().err


def test_push_needs_a_visibility_a_token_and_a_network(
    trained: list[RunDir], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lora = trained[1]
    with pytest.raises(SystemExit):
        cli.main(["push", lora.id, "me/x"])
    assert "--private --public" in capsys.readouterr().err
    assert cli.main(["push", lora.id, "me/x", "--public"]) == 2
    assert "HF_HUB_OFFLINE is set" in capsys.readouterr().err
    monkeypatch.setenv("LAB_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
    assert cli.main(["push", lora.id, "me/x", "--public", "--what", "gguf-F16"]) == 2
    assert "not made yet" in capsys.readouterr().err
    assert cli.main(["push", lora.id, "me/x", "--public"]) == 2
    assert "needs a token with the right to write" in capsys.readouterr().err


def test_scores_say_who_is_right_where_the_other_is_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def model(*right: float) -> ScoredModel:
        answers = tuple(ScoredAnswer(f"said {n}", figures={"exact_match": n}) for n in right)
        return ScoredModel({"exact_match": sum(right) / len(right)}, answers)

    questions = tuple(ScoredQuestion(n, f"Question {n}?", f"right {n}") for n in range(4))
    models = {"base:a": model(0, 0, 1, 0), "run:b": model(1, 1, 0, 1)}
    answer = ScoreSheet("builtin:x", "text", "exact_match", questions, models)
    monkeypatch.setattr(score, "check_questions", lambda arguments: None)
    monkeypatch.setattr(score, "parse", lambda name: name)
    monkeypatch.setattr(score.downloads, "fetch_models", lambda names: None)
    monkeypatch.setattr(score.scoring, "score", lambda *terms: answer)
    assert cli.main(["score", "base:a", "run:b", "--set", "builtin:x"]) == 0
    shown = capsys.readouterr().out
    assert "base:a right and run:b wrong: 1; the other way round: 3." in shown
    worst = shown.partition("Worst answers of run:b:")[2]
    assert " ".join(worst.split()).startswith("Question 2? right: right 2 said: said 0")
    assert cli.main(["score", "base:a", "run:b", "--set", "builtin:x", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert list(data) == ["set", "kind", "rows", "models", "main", "extremes", "differences"]
    assert data["rows"][1] == {"row": 1, "prompt": "Question 1?", "reference": "right 1"}
    assert [list(each) for each in data["models"]] == [["model", "figures", "answers"]] * 2
    assert list(data["models"][0]["answers"][0]) == ["text", "likeliest", "label", "figures"]
    assert data["extremes"]["run:b"] == {"best": [0, 1], "worst": [2, 3]}
    pair = {"models": ["base:a", "run:b"], "first": [2], "second": [0, 1, 3]}
    assert data["differences"] == [pair]


def test_the_rows_that_only_one_run_gets_right_are_told_by_name(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With the base there as "The base"; a run without a name by its ID."""
    first, second = record("aaaa", "first"), record("bbbb", "")
    right = [True, False, False, False] + 5 * [True] + [False]
    score_run(first, right, base=[False, True, True, True] + 5 * [True] + [False])
    score_run(second, [not value for value in right[:4]] + right[4:])
    compare.show_scores(comparison.compare([first, second]))
    shown = " ".join(capsys.readouterr().out.split())
    assert "The base gets 3 rows right that first does not; the other way round 1." in shown
    assert f"first gets 1 row right that {second.id} does not; the other way round 3." in shown
    assert "Scores on builtin:text-to-shell: 10 questions" in shown


def test_a_figure_that_one_model_lacks_is_a_dash(capsys: pytest.CaptureFixture[str]) -> None:
    run = record("aaaa", "first")
    sheet = score_run(run, [True, False], base=[True, True])
    name = f"run:{run.id}"
    scored = sheet.models[name]
    more = replace(scored, figures=scored.figures | {"accuracy": 0.25})
    sheet, names = replace(sheet, models=sheet.models | {name: more}), tuple(sheet.models)
    outcome = replace(comparison.compare([run]), scores=(ScoredSet(sheet, names, ()),))
    compare.show_scores(outcome)
    lines = capsys.readouterr().out.splitlines()
    of_base, of_run = (
        next(line for line in lines if line.startswith(name)) for name in ("base model", "first ")
    )
    assert "–" in of_base and "0.250" in of_run


def test_the_needed_rank_stands_before_the_rank_of_the_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    matrices = tuple(
        MatrixSpectrum(f"{name}.weight", (8, 8), 8, (), norm, needed, 2.5, 1.5, 4.0)
        for name, norm, needed in (("small", 0.5, 2), ("large", 1.5, 5))
    )
    report = RankReport(
        run="run-a", needed=3, rank=8, matrices=matrices, similarity={"large.weight": 0.25}
    )
    monkeypatch.setattr(rank.paths, "run_dir", RunDir)
    monkeypatch.setattr(rank.measure, "measure", lambda *runs, **terms: report)
    assert cli.main(["rank", "run-a"]) == 0
    shown = capsys.readouterr().out
    large, small = (line for line in shown.splitlines() if " of 8 " in line and "≈" not in line)
    assert large.startswith("large ") and "5 of 8" in large and large.rstrip().endswith("0.25")
    assert small.startswith("small ") and "2 of 8" in small and small.rstrip().endswith("–")
    assert "run-a needed r ≈ 3 of 8 (95 % of the energy of all updates)." in shown


def test_waiting_for_a_job_tells_each_phase_once(
    lab_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [JobRecord(phase=phase) for phase in ("a", "a", "b")]
    records.append(JobRecord(phase="b", finish="done"))
    monkeypatch.setattr(background_job, "read", lambda file: records.pop(0))
    phases: list[str] = []
    assert background_job.wait(lab_home, phases.append, 0.0).finish == "done"
    assert phases == ["a", "b"]
    monkeypatch.setattr(background_job, "read", lambda file: None)
    assert background_job.wait(lab_home, phases.append, 0.0).finish == "interrupted"
