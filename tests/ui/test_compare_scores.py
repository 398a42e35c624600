"""The Scores tab of Compare: what it shows of stored answers, and how it measures."""

from __future__ import annotations

import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from lab import background_job, process
from lab.atomic_files import read_object, write_json
from lab.background_job import JobRecord
from lab.evals import score_job, score_sheets
from lab.paths import RunDir
from tests.compare.recorded import record, score_run
from tests.compare.test_scored_rows import BASE, FIRST, SECOND
from tests.ui.conftest import Page, words


def two() -> list[RunDir]:
    return [
        record("aaaa", "wren lora", data={"dataset": "builtin:text-to-shell"}),
        record("bbbb", "wren [full](http:x)", "full", labels={"colour": "orange"},
               data={"dataset": "builtin:text-to-shell"}),
    ]  # fmt: skip


def scores(open_page: Page, runs: list[RunDir]) -> Any:
    return open_page("compare", runs=",".join(run.id for run in runs), tab="Scores")


def test_figures_and_rows_of_two_runs_and_their_base(open_page: Page) -> None:
    runs = two()
    score_run(runs[0], FIRST, BASE)
    score_run(runs[1], SECOND)
    at = scores(open_page, runs)
    table = at.table[0].value
    assert table.iloc[:, 0].tolist() == [
        ":gray[●] base model", ":blue[●] wren lora", ":orange[●] wren \\[full\\]\\(http\\:x\\)",
    ]  # fmt: skip
    assert table["Exact match ↑"].tolist() == [
        "0.000", "**0.900** :material/check_circle:", "0.200",
    ]  # fmt: skip
    text = words(at)
    assert (
        ":blue[●] wren lora gets 8 rows right that :orange[●] wren \\[full\\]\\(http\\:x\\) does "
        "not; the other way round 1." in text
    )
    assert "p = 0.039, a difference is shown." in text
    only_lora, only_full = (frame.value for frame in at.dataframe)
    assert only_full.iloc[0].tolist() == ["question 7", "answer 7", "wrong 7", "answer 7"]
    assert len(only_lora) == 8 and only_lora["Prompt"].iloc[0] == "question 1"
    at.selectbox(key="compare.scores.b").set_value(f"run:{runs[0].id}").run()
    assert not at.exception and "Choose two different models." in words(at)


def test_best_and_worst_answers_can_be_read(open_page: Page) -> None:
    runs = two()[:1]
    score_run(runs[0], SECOND, BASE)
    text = words(scores(open_page, runs))
    assert "Reference: answer 0" in text and "exact match 1.00 · token F1 1.00" in text
    assert "exact match 0.00 · token F1 0.25" in text and "wrong 9" in text


def test_a_question_is_text_and_no_markup(open_page: Page) -> None:
    run = two()[0]
    score_run(run, SECOND, BASE)
    file = score_sheets.file_of([len(SECOND)])
    stored = read_object(file) or {}
    stored["questions"][0]["prompt"] = "Follow [this](http:x) now"
    write_json(file, stored)
    text = words(scores(open_page, [run]))
    assert "](http" not in text and "Follow \\[this\\]" in text


def test_sets_that_fit_are_offered_and_measured_in_the_background(
    open_page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = two()
    started: list[Any] = []
    monkeypatch.setattr(score_job, "start", lambda runs, name: started.append((runs, name)))
    at = scores(open_page, runs)
    assert "None of these runs has been scored." in words(at)
    box = at.selectbox(key="compare.scores.on")
    assert box.options == ["Text to shell", "Common knowledge"]
    box.set_value("builtin:common-knowledge")
    at.button(key="compare.scores.start").click().run()
    assert not at.exception
    ((chosen, name),) = started
    assert [run.id for run in chosen] == [run.id for run in runs]
    assert name == "builtin:common-knowledge"


@pytest.mark.parametrize(
    ("job", "says"),
    [
        (
            JobRecord(finish="failed", error="No *rows*.", hint="Take others."),
            "No \\*rows\\*\\. Take others",
        ),
        (JobRecord(finish="interrupted"), "The last scoring was stopped."),
    ],
)
def test_a_scoring_that_did_not_end_well_says_so(
    open_page: Page, job: JobRecord, says: str
) -> None:
    runs = two()
    write_job(runs, job)
    at = scores(open_page, runs)
    assert says in words(at) and at.button(key="compare.scores.start") is not None


def write_job(runs: list[RunDir], job: JobRecord) -> Path:
    file = score_job.job_file(runs)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, asdict(job))
    return file


def test_progress_is_shown_and_can_be_stopped(
    open_page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = two()
    job = JobRecord(
        phase="12 of 66 answers, about 40 s left", started=time.time() - 9,
        request={"dataset": "builtin:text-to-shell"}, process=process.identity(os.getpid()) or {},
    )  # fmt: skip
    file = write_job(runs, job)
    stopped: list[Path] = []
    monkeypatch.setattr(background_job, "stop", stopped.append)
    at = scores(open_page, runs)
    text = words(at)
    assert "Text to shell\\: 12 of 66 answers, about 40 s left" in text
    assert "s so far" in text
    at.button(key="compare.scores.stop").click().run()
    assert stopped == [file] and not at.exception


def test_without_a_result_there_is_nothing_to_score(open_page: Page) -> None:
    run = record("aaaa", "A")
    run.artifact.rename(run.path / "gone")
    assert "A run can be scored once it has a result." in words(scores(open_page, [run]))
