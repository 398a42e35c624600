"""The harness's own tasks: their rows come from the Hub that was named, their figures are those of
a plain re-computation; what would need more than rows is refused by its reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from lab import cli
from lab.chat import models as chat_models
from lab.data import hub
from lab.errors import LabError
from lab.evals import harness_tasks, lm_eval_scores
from lab.evals.harness_tasks import HarnessTask
from tests.hub.stand_in import StandIn

NAME = "allenai/ai2_arc"
CARD = b"""---
configs:
- config_name: ARC-Easy
  data_files:
  - split: test
    path: easy/test.jsonl
  - split: train
    path: easy/train.jsonl
- config_name: ARC-Challenge
  data_files:
  - split: test
    path: other.jsonl
---
"""
OPTIONS = ["two", "It is a small model", "plus"]
QUESTIONS = [(f"What is {n} plus {n}?", OPTIONS[: 2 + n % 2], n % 2) for n in range(7)]

needs_harness = pytest.mark.skipif(
    find_spec(harness_tasks.MODULE) is None,
    reason="lm-eval is not installed: pip install -r requirements-lm-eval.txt",
)
STATED = ("acc", "acc_norm")


def arc_rows(questions: list[tuple[str, list[str], int]]) -> bytes:
    rows = (
        {
            "question": question,
            "choices": {"text": options, "label": list("ABC")[: len(options)]},
            "answerKey": "ABC"[right],
        }
        for question, options, right in questions
    )
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@pytest.fixture
def arc(stand_in: StandIn) -> str:
    """ARC-Easy of seven questions; its commit."""
    files = {
        "README.md": CARD,
        "easy/test.jsonl": arc_rows(QUESTIONS),
        "easy/train.jsonl": arc_rows(QUESTIONS[:1]),
        "other.jsonl": arc_rows(QUESTIONS[:2]),
    }
    return stand_in.commit(NAME, files, "datasets")


def expected_accuracy(model_id: str, questions: list[tuple[str, list[str], int]]) -> list[float]:
    """[acc, acc_norm], computed without the harness."""
    loaded = chat_models.load(chat_models.parse(model_id))
    right = [0, 0]
    for question, options, answer in questions:
        context = loaded.tokenizer(f"Question: {question}\nAnswer:")["input_ids"]
        sums = []
        for option in options:
            whole = loaded.tokenizer(f"Question: {question}\nAnswer: {option}")["input_ids"]
            with torch.no_grad():
                logits = loaded.model(torch.tensor([whole])).logits[0].log_softmax(-1)
            ids = range(len(context), len(whole))
            sums.append(sum(float(logits[i - 1, whole[i]]) for i in ids))
        per_character = [total / len(option) for total, option in zip(sums, options, strict=True)]
        for i, scores in enumerate((sums, per_character)):
            right[i] += scores.index(max(scores)) == answer
    return [count / len(questions) for count in right]


@needs_harness
def test_the_figures_of_a_task_are_those_of_a_plain_computation(
    arc: str, stand_in: StandIn, micro_model: Path
) -> None:
    name = f"base:{micro_model}"
    phases: list[str] = []
    scores = harness_tasks.measure([chat_models.parse(name)], "arc_easy", 50, phases.append)
    assert [scores.models[0].figures[key] for key in STATED] == pytest.approx(
        expected_accuracy(name, QUESTIONS)
    )
    assert set(scores.models[0].errors) == set(STATED), "Each accuracy has its standard error."
    assert (scores.rows, scores.shots) == (7, 0)
    assert scores.dataset == f"{NAME}:ARC-Easy@test#{arc}", "The commit of the rows is named."
    assert phases[0] == "reading the task arc_easy" and phases[-1].startswith("scoring ")
    assert not stand_in.requests("GET", "easy/train"), "A split that is not read is not fetched."

    stand_in.faults["*"] = {"status": 500, "count": -1}
    few = harness_tasks.measure([chat_models.parse(name)], "arc_easy", 3, phases.append)
    assert few.rows == 3, "What is here is read without the Hub; --most limits the rows."
    assert few.models[0].figures["acc"] == pytest.approx(expected_accuracy(name, QUESTIONS[:3])[0])


@needs_harness
def test_the_verb_runs_a_task_with_the_token_in_a_process_of_its_own(
    arc: str, stand_in: StandIn, micro_model: Path, lab_json: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    stand_in.faults[NAME] = {"gated": True, "tokens": ["hf_right"], "may": ["hf_right"]}
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    answer = lab_json("harness", f"base:{micro_model}", "--set", "arc_easy", "--most", "2")
    assert answer["rows"] == 2 and set(answer["models"][0]["figures"]) == set(STATED)
    assert "hf_right" not in lm_eval_scores.job_file().with_suffix(".log").read_text()


@needs_harness
def test_examples_in_the_prompt_come_from_their_own_split(tmp_path: Path) -> None:
    rows = [{"q": f"q{n}", "a": n % 2} for n in range(4)]
    files = {}
    for split, begin in (("test", "asked"), ("train", "shown")):
        files[split] = tmp_path / f"{split}.jsonl"
        lines = (json.dumps(row | {"q": f"{begin} {row['q']}"}) for row in rows)
        files[split].write_text("".join(line + "\n" for line in lines))
    file = tmp_path / "task.yaml"
    file.write_text(
        "task: shots\ndataset_path: org/set\noutput_type: multiple_choice\ntraining_split: train\n"
        "test_split: test\nnum_fewshot: 2\ndoc_to_text: q\ndoc_to_target: a\n"
        "doc_to_choice: ['no', 'yes']\n"
    )
    task = HarnessTask("shots", file, hub.parse("org/set"), "test", "train", 2)
    built = harness_tasks.build(task, files)
    prompt = built.fewshot_context(built.test_docs()[0], 2)
    assert prompt.count("shown q") == 2 and prompt.endswith("asked q0")


SHOTS = {"num_fewshot": 5, "training_split": "train"}


@pytest.mark.parametrize(
    ("changes", "split", "examples"),
    [
        ({}, "test", None),
        ({"test_split": None, "validation_split": "dev"}, "dev", None),
        ({"training_split": "train"}, "test", None),
        (SHOTS, "test", "train"),
        (SHOTS | {"validation_split": "dev"}, "test", "train"),
        (SHOTS | {"fewshot_split": "dev"}, "test", "dev"),
        (SHOTS | {"fewshot_config": {"samples": [{"q": 1}]}}, "test", None),
        ({"dataset_kwargs": {"trust_remote_code": True}}, "test", None),
    ],
)
def test_only_the_splits_that_a_task_reads_are_wanted(
    changes: dict[str, Any], split: str, examples: str | None
) -> None:
    config = {"dataset_path": "org/set", "dataset_name": "en", "test_split": "test"} | changes
    task = harness_tasks._from_config("task", Path("task.yaml"), config)
    assert (task.split, task.examples) == (split, examples)
    wanted = {str(each) for each in task.datasets.values()}
    assert wanted == {f"org/set:en@{split}"} | (
        {"org/set:en" if examples == "train" else f"org/set:en@{examples}"} if examples else set()
    )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"class": "Other"}, "makes its data by code of its own"),
        ({"custom_dataset": "load"}, "makes its data by code of its own"),
        ({"unsafe_code": True}, "runs the code that a model writes"),
        ({"doc_to_image": "image"}, "shows images or sounds"),
        ({"metric_list": [{"metric": "m", "hf_evaluate": True}]}, "code that would be downloaded"),
        ({"dataset_path": "/etc/passwd"}, "('/etc/passwd') is not a dataset of the Hub"),
        ({"dataset_path": "json"}, "('json') is not a dataset of the Hub"),
        ({"dataset_kwargs": {"data_files": "https://x"}}, "options of its own (data_files)"),
        ({"test_split": None}, "names no split to score"),
    ],
)
def test_a_task_that_needs_more_than_rows_is_refused_by_its_reason(
    changes: dict[str, Any], reason: str
) -> None:
    config = {"dataset_path": "org/set", "test_split": "test"} | changes
    with pytest.raises(LabError) as refusal:
        harness_tasks._from_config("task", Path("task.yaml"), config)
    assert reason in refusal.value.message


@needs_harness
def test_a_metric_that_the_harness_would_download_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that it does not have it looks for on the Hub, as code."""
    import evaluate

    monkeypatch.setattr(evaluate, "load", lambda name: pytest.fail(f"{name} was loaded"))
    file, rows = tmp_path / "task.yaml", tmp_path / "rows.jsonl"
    rows.write_text('{"q": "a", "a": "b"}\n')
    file.write_text(
        "task: odd\ndataset_path: org/set\noutput_type: generate_until\ntest_split: test\n"
        "doc_to_text: q\ndoc_to_target: a\nmetric_list:\n  - metric: meteor\n"
    )
    task = HarnessTask("odd", file, hub.parse("org/set"), "test")
    with pytest.raises(LabError, match=r"metric 'meteor' is code that would be downloaded"):
        harness_tasks.build(task, {"test": rows})


@needs_harness
def test_a_task_at_work_reaches_no_host(
    micro_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import urllib.request

    def build(*_: Any) -> Any:
        urllib.request.urlopen("http://127.0.0.1:9/words.zip", timeout=1)

    monkeypatch.setattr(harness_tasks, "build", build)
    task = HarnessTask("odd", tmp_path / "task.yaml", hub.parse("org/set"), "test")
    loaded = chat_models.load(chat_models.parse(f"base:{micro_model}"))
    with pytest.raises(LabError, match=r"asks for '127.0.0.1', and has no network"):
        harness_tasks._of_model(loaded, task, {}, 1)


@pytest.mark.parametrize(
    ("text", "is_task"),
    [
        ("arc_easy", True), ("longproc_tom_tracking_0.5k", True), ("ja-leaderboard", True),
        ("rows.jsonl", False), ("questions.csv.gz", False), ("set.parquet", False),
        ("builtin:common-knowledge", False), ("org/set", False), ("./rows", False), ("", False),
    ],
)  # fmt: skip
def test_a_file_of_data_is_never_taken_for_a_task(text: str, is_task: bool) -> None:
    assert harness_tasks.is_name(text) is is_task


def test_a_group_names_its_tasks_and_an_unknown_name_those_close_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = {
        "arc.yaml": b"tag:\n  - ai2_arc\n  - science\ntask: arc_easy\ndataset_path: a/b\n",
        "hard.yaml": b"include: arc.yaml\ntag: ai2_arc\ntask: arc_challenge\n",
    }
    monkeypatch.setattr(
        harness_tasks, "_files", lambda: ((tmp_path / name, text) for name, text in texts.items())
    )
    with pytest.raises(LabError, match="'ai2_arc' is a group of 2 tasks") as refusal:
        harness_tasks.read("ai2_arc")
    assert "arc_easy, arc_challenge" in refusal.value.hint
    with pytest.raises(LabError, match="'arc_eazy' is neither a dataset nor a task") as refusal:
        harness_tasks.read("arc_eazy")
    assert "arc_easy" in refusal.value.hint
    with pytest.raises(LabError, match="is a group of 2 tasks") as refusal:
        config = {"group": "mmlu", "task": ["one", {"task": "two"}]}
        harness_tasks._from_config("mmlu", Path("mmlu.yaml"), config)
    assert "one, two" in refusal.value.hint


def test_a_split_that_the_dataset_no_longer_has_is_said(stand_in: StandIn) -> None:
    stand_in.commit("org/set", {"train.jsonl": arc_rows(QUESTIONS[:1])}, "datasets")
    task = HarnessTask("task", Path("task.yaml"), hub.parse("org/set"), "validation")
    with pytest.raises(LabError) as refusal:
        harness_tasks.fetch(task, lambda phase: None)
    assert "'validation'" in refusal.value.message


def test_a_task_without_the_extra_says_how_to_get_it(
    micro_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lm_eval_scores, "find_spec", lambda name: None)
    assert cli.main(["harness", f"base:{micro_model}", "--set", "arc_easy"]) == 2
    assert "-r requirements-lm-eval.txt" in " ".join(capsys.readouterr().err.split())
    assert cli.main(["harness", f"base:{micro_model}", "--set", "arc_easy", "--most", "0"]) == 2
    assert "--most is 0" in capsys.readouterr().err
