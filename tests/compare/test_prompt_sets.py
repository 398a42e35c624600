"""Prompts for a blind vote."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.atomic_files import read_object, write_json
from lab.compare import prompt_sets
from lab.data import batches
from lab.errors import LabError
from lab.paths import all_runs
from tests.conftest import write_rows
from tests.ui.test_panels import make_run


def asks(*questions: str) -> list[dict[str, object]]:
    return [
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": question},
                {"role": "assistant", "content": "Yes."},
                {"role": "user", "content": "Really?"},
                {"role": "assistant", "content": "Yes."},
            ]
        }
        for question in questions
    ]


def test_the_first_question_of_each_row_is_a_prompt_once(lab_home: Path, tmp_path: Path) -> None:
    file = tmp_path / "chats.jsonl"
    write_rows(file, asks("one", "two", "one", " ", "three"))
    assert prompt_sets.prompts(str(file), 10) == ["one", "two", "three"]
    drawn = {tuple(prompt_sets.prompts(str(file), 2, seed)) for seed in range(30)}
    assert drawn == {("one", "two"), ("one", "three"), ("two", "three")}
    assert prompt_sets.prompts(str(file), 2, 7) == prompt_sets.prompts(str(file), 2, 7)


def test_prompts_to_try_are_those_of_the_card(lab_home: Path) -> None:
    assert prompt_sets.prompts("try:builtin:glossary", 9) == [
        "What is gradient clipping?", "Explain quantisation in a sentence or two.",
    ]  # fmt: skip


def test_held_out_prompts_are_those_that_the_run_did_not_learn(
    lab_home: Path, tmp_path: Path
) -> None:
    questions = [f"question {number}" for number in range(20)]
    file, other = tmp_path / "chats.jsonl", tmp_path / "others.jsonl"
    write_rows(file, asks(*questions))
    write_rows(other, asks("another"))

    def run_on(number: int, **data: object) -> str:
        run = make_run(number, "x")
        data = {"dataset": str(file), **data}
        spec = {"v": 1, "name": "x", "model": "org/base", "method": {"name": "lora"}}
        write_json(run.spec, spec | {"data": data, "train": {}})
        return f"held-out:{run.id}"

    _, held = batches.split_indices(20, 0.25)
    source = run_on(1, eval_fraction=0.25)
    assert prompt_sets.prompts(source, 99) == [questions[place] for place in held]
    events = all_runs()[0].events
    events.write_text('{"kind": "data", "examples": 20}\n')
    assert len(prompt_sets.prompts(source, 99)) == 5
    events.write_text('{"kind": "data", "examples": 19}\n')
    with pytest.raises(LabError, match="used 19 rows"):
        prompt_sets.prompts(source, 99)
    assert prompt_sets.prompts(run_on(2, eval_dataset=str(other)), 99) == ["another"]
    with pytest.raises(LabError, match="held no rows out"):
        prompt_sets.prompts(run_on(3, eval_fraction=0.0), 99)
    first = run_on(4, eval_fraction=0.05).removeprefix("held-out:")
    for run in all_runs():
        if f"held-out:{run.id}" == source:
            write_json(run.spec, (read_object(run.spec) or {}) | {"init_from_run": f"run:{first}"})
            write_json(run.events, {"kind": "data", "examples": 20})
    (place,) = batches.split_indices(20, 0.05)[1]
    assert prompt_sets.prompts(source, 99) == [questions[place]], "the run that it began with"


def test_a_set_without_questions_is_refused(lab_home: Path) -> None:
    with pytest.raises(LabError, match="has no question to ask"):
        prompt_sets.prompts("builtin:tide-clock-story", 5)
    with pytest.raises(LabError, match="Unknown dataset"):
        prompt_sets.prompts("builtin:other", 5)
