"""Scores in the background: who is asked, on which rows, and what a stop leaves."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from lab import background_job, paths
from lab.atomic_files import read_object, write_json
from lab.chat import models as chat_models
from lab.compare import scored_rows
from lab.compare.contestants import contestants
from lab.data import batches
from lab.data.example_reader import ExampleReader, ReadOptions
from lab.errors import LabError
from lab.evals import score, score_job, score_sheets
from lab.evals.score import ScoredAnswer
from lab.evals.score_sheets import ScoredModel, ScoredQuestion, ScoreSheet
from lab.paths import RunDir
from tests.compare.recorded import record


@pytest.fixture
def questions(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """(model, prompt) of every question; each model answers with the reference."""
    log: list[tuple[str, str]] = []

    def answer(loaded: Any, named: Any, item: Any, terms: Any) -> ScoredAnswer:
        log.append((named.name, item.messages[-1]["content"]))
        figures = score.answer_figures(item.reference, "", item, terms)
        return ScoredAnswer(item.reference, figures=figures)

    monkeypatch.setattr(score, "_answer", answer)
    monkeypatch.setattr(chat_models, "load", lambda named: None)
    return log


def request(*runs: RunDir, dataset: str = "builtin:text-to-shell", most: int = 4) -> dict[str, Any]:
    return {"models": [f"run:{run.id}" for run in runs], "dataset": dataset, "most": most}


def test_only_models_without_answers_are_asked(questions: list[tuple[str, str]]) -> None:
    first, second = record("aaaa", "A"), record("bbbb", "B", "full")
    phases: list[str] = []
    base, *others = score_job.score_missing(request(first), phases.append)["asked"]
    assert base.startswith("base:") and others == [f"run:{first.id}"], "the base comes first"
    assert phases[0] == "loading model 1 of 2" and phases[-1].startswith(
        "8 of 8 answers, about 0 s"
    )
    count = len(questions)
    assert score_job.score_missing(request(first, second), phases.append)["asked"] == [
        f"run:{second.id}"
    ]
    assert len(questions) == count + 4, "the others have said it already"
    (scored,) = scored_rows.scored_sets(contestants([first, second]))
    assert len(scored.models) == 3 and not scored.missing
    assert scored.model(f"run:{second.id}").figures["shell_match"] == 1.0
    assert score_job.score_missing(request(first, second), phases.append)["asked"] == []


def test_a_stop_between_two_models_keeps_the_first(
    questions: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = record("aaaa", "A")

    def load(named: Any) -> None:
        if named.run is not None:
            raise LabError("stopped here")

    monkeypatch.setattr(chat_models, "load", load)
    with pytest.raises(LabError, match="stopped here"):
        score_job.score_missing(request(run), lambda phase: None)
    (sheet,) = score_sheets.all_sheets()
    assert [name.partition(":")[0] for name in sheet.models] == ["base"]


@pytest.mark.parametrize(
    ("fractions", "held"), [((0.3, 0.3), 0.3), ((0.3, 0.1), 0.1), ((0.1, 0.3), 0.1)]
)
def test_no_row_that_a_run_was_trained_on_is_asked(
    questions: list[tuple[str, str]], fractions: tuple[float, float], held: float
) -> None:
    """The card holds out 15 %: a run that held out less has learned some of these."""
    runs = [
        record(letters, letters, data={"dataset": "builtin:text-to-shell", "eval_fraction": share})
        for letters, share in zip(("aaaa", "bbbb"), fractions, strict=True)
    ]
    score_job.score_missing(request(*runs, most=1000), lambda phase: None)
    dataset = score.catalog.resolve("builtin:text-to-shell")
    examples = list(ExampleReader(dataset.path, ReadOptions()))
    rows = batches.split_indices(len(examples), held)[1]
    expected = {examples[index].messages[0]["content"] for index in rows}
    assert {prompt for _, prompt in questions} == expected, "both held these rows out"


@pytest.mark.parametrize("refused", [0, 1])
def test_rows_are_not_asked_where_the_run_used_another_number_of_them(
    questions: list[tuple[str, str]], refused: int
) -> None:
    """A template may refuse rows that are skipped; which rows are held out follows their number."""
    run = record("aaaa", data={"dataset": "builtin:text-to-shell", "eval_fraction": 0.3})
    dataset = score.catalog.resolve("builtin:text-to-shell")
    count = len(list(ExampleReader(dataset.path, ReadOptions())))
    used = {"v": 1, "kind": "data", "attempt": 1, "time": 1.0, "examples": count - refused}
    with run.events.open("a") as file:
        file.write(json.dumps(used) + "\n")
    if not refused:
        assert score_job.score_missing(request(run), lambda phase: None)["asked"]
        return
    with pytest.raises(LabError, match=f"used {count - 1} rows .* which were held out is not kno"):
        score_job.score_missing(request(run), lambda phase: None)
    assert questions == [], "No row is asked that the run may have learned."


def test_a_run_that_held_nothing_out_cannot_be_scored_on_its_data(
    questions: list[tuple[str, str]],
) -> None:
    run = record("aaaa", data={"dataset": "builtin:text-to-shell", "eval_fraction": 0.0})
    measured_elsewhere = {"eval_fraction": 0.2, "eval_dataset": "builtin:support-tickets"}
    other = record("bbbb", data={"dataset": "builtin:text-to-shell"} | measured_elsewhere)
    for each in (run, other):
        with pytest.raises(LabError, match="trained on every row of 'builtin:text-to-shell'"):
            score_job.score_missing(request(each), lambda phase: None)
    assert score_job.score_missing(
        request(run, dataset="builtin:support-tickets"), lambda phase: None
    )["asked"], "another set is no secret to it"


@pytest.mark.parametrize("way", ["began with it", "was combined from it", "by two steps"])
def test_what_the_weights_come_from_has_learned_too(
    questions: list[tuple[str, str]], way: str
) -> None:
    """A result that goes on from another one knows the rows of both."""
    shell = {"dataset": "builtin:text-to-shell", "eval_fraction": 0.1}
    first = record("aaaa", data=shell)
    second = record("bbbb", data=shell | {"eval_fraction": 0.3})
    third = record("cccc", data={"dataset": "builtin:persona-chats"})
    last = second
    if way == "was combined from it":
        receipt = read_object(second.artifact / "receipt.json") or {}
        second.artifact.mkdir(exist_ok=True)
        sources = {"combined_from": {"results": [third.id, first.id]}}
        write_json(second.artifact / "receipt.json", receipt | sources)
    else:
        spec = read_object(second.spec) or {}
        write_json(second.spec, spec | {"init_from_run": f"run:{first.id}"})
    if way == "by two steps":
        last, spec = third, read_object(third.spec) or {}
        write_json(third.spec, spec | {"init_from_run": f"run:{second.id}"})
    score_job.score_missing(request(last, most=1000), lambda phase: None)
    dataset = score.catalog.resolve("builtin:text-to-shell")
    examples = list(ExampleReader(dataset.path, ReadOptions()))
    rows = batches.split_indices(len(examples), 0.1)[1]
    expected = {examples[index].messages[0]["content"] for index in rows}
    assert {prompt for _, prompt in questions} == expected, "the first held out fewer"


def test_a_run_that_mixed_a_set_in_cannot_be_scored_on_it(
    questions: list[tuple[str, str]],
) -> None:
    mixed = {"general_dataset": "builtin:text-to-shell", "general_fraction": 0.05}
    run = record("aaaa", data={"dataset": "builtin:persona-chats"} | mixed)
    with pytest.raises(LabError, match="trained on every row of 'builtin:text-to-shell'"):
        score_job.score_missing(request(run), lambda phase: None)


@pytest.mark.parametrize(
    ("data", "sets"),
    [
        ({"dataset": "builtin:text-to-shell", "eval_fraction": 0.1}, ["builtin:text-to-shell"]),
        ({"dataset": "builtin:text-to-shell", "eval_fraction": 0.0}, []),
        ({"dataset": "builtin:made-up-facts", "eval_fraction": 0.0},
         ["builtin:made-up-facts@held-out"]),
        ({"dataset": "builtin:tide-clock-story", "eval_fraction": 0.1}, []),
        ({"dataset": "builtin:persona-chats", "eval_dataset": "builtin:everyday-instructions"},
         ["builtin:everyday-instructions"]),
        ({"dataset": "builtin:text-to-shell", "eval_fraction": 0.1,
          "eval_dataset": "builtin:everyday-instructions"}, ["builtin:everyday-instructions"]),
    ],
)  # fmt: skip
def test_sets_are_offered_that_fit_the_data(data: dict[str, Any], sets: list[str]) -> None:
    run = record("aaaa", data={"eval_fraction": 0.0} | data)
    assert score_job.fitting_sets([run]) == [*sets, "builtin:common-knowledge"]


def test_a_job_is_of_these_runs_and_leaves_a_record(
    questions: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [record("aaaa", "A"), record("bbbb", "B", "full")]
    started: list[list[str]] = []

    def start(file: Path, arguments: list[str], values: dict[str, Any]) -> None:
        started.append(arguments)
        file.parent.mkdir(parents=True)
        write_json(file, {"request": values, "started": 1.0})

    monkeypatch.setattr(background_job, "start", start)
    score_job.start(runs, "builtin:text-to-shell", 3)
    assert score_job.job_file(runs) == score_job.job_file(runs[::-1])
    (arguments,) = started
    assert arguments[:2] == ["lab.evals", "score"] and score_job.work(arguments[2]) == 0
    record_of = score_job.record(runs)
    assert record_of is not None and record_of.finish == "done"
    assert len(record_of.result["asked"]) == 3 and len(questions) == 9
    run = record("cccc")
    run.artifact.rename(run.path / "gone")
    with pytest.raises(LabError, match="no trained model yet"):
        score_job.start([run], "builtin:text-to-shell")


def test_the_time_left_follows_the_pace() -> None:
    assert score_job.progress(12, 66, 20.0) == "12 of 66 answers, about 1 min 30 s left"


def test_a_damaged_sheet_is_no_sheet(questions: list[tuple[str, str]]) -> None:
    run = record("aaaa")
    score_job.score_missing(request(run), lambda phase: None)
    (file,) = score_sheets.folder().glob("*.json")
    stored = read_object(file)
    assert stored is not None
    (name,) = [name for name in stored["models"] if name.startswith("run:")]
    stored["models"][name]["answers"].pop()
    write_json(file, stored)
    (sheet,) = score_sheets.all_sheets()
    assert name not in sheet.models, "answers to other questions than these"
    file.write_text("[]")
    assert score_sheets.all_sheets() == []


def test_the_set_of_which_a_model_was_asked_last_is_the_last(lab_home: Path) -> None:
    question, answer = ScoredQuestion(1, "q", "r"), ScoredAnswer("r")
    for name, dates in (("first", (1.0, 10.0)), ("second", (5.0,))):
        models = {f"base:{date}": ScoredModel({}, (answer,), "v", date) for date in dates}
        sheet = ScoreSheet(name, "text", "exact_match", (question,), models)
        paths.make_folder(score_sheets.folder())
        write_json(score_sheets.folder() / f"{name}.json", {"v": 1, **asdict(sheet)})
    assert [sheet.dataset for sheet in score_sheets.all_sheets()] == ["second", "first"]


def test_the_verb_keeps_what_it_measures(questions: list[tuple[str, str]]) -> None:
    run = record("aaaa")
    named: Callable[[str], Any] = chat_models.parse
    score.score([named(f"run:{run.id}")], "builtin:text-to-shell", 3)
    (scored,) = scored_rows.scored_sets(contestants([run]))
    assert [len(scored.model(name).answers) for name in scored.models] == [3, 3]
    assert replace(scored.sheet, models={}).kind == "shell"


def test_a_process_of_its_own_scores_real_results(trained: list[RunDir]) -> None:
    """The base and two results of a tiny model on their held-out rows, in the background."""
    (dataset, *_) = score_job.fitting_sets(trained)
    score_job.start(trained, dataset, 2)
    with pytest.raises(LabError, match="already"):
        score_job.start(trained, dataset, 2)
    phases: list[str] = []
    ended = background_job.wait(score_job.job_file(trained), phases.append)
    assert ended.finish == "done", f"{ended.error} {ended.hint}"
    (scored,) = scored_rows.scored_sets(contestants(trained))
    assert [name.partition(":")[0] for name in scored.models] == ["base", "run", "run"]
    assert len(scored.sheet.questions) == 2 and not scored.missing
    assert all(set(scored.model(name).figures) == {"exact_match", "token_f1"}
               for name in scored.models)  # fmt: skip
