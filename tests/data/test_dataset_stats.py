"""What is said of a spec's data before the run starts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lab.data import dataset_stats
from lab.spec import RunSpec
from tests.answers import check
from tests.conftest import write_rows

Make = Callable[..., dict[str, Any]]


def facts_of(spec: dict[str, Any]) -> dict[str, Any]:
    answer = check(spec)
    assert answer["problems"] == []
    facts: dict[str, Any] = answer["facts"]
    return facts


def pairs(count: int, answer: str = "yes") -> list[dict[str, str]]:
    return [{"prompt": f"Is {number} a number?", "completion": answer} for number in range(count)]


def test_a_large_files_rows_are_estimated_from_its_size(
    make_spec: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "many.jsonl"
    rows = [{"prompt": f"{number:09d}", "completion": "y" * 100} for number in range(300_000)]
    write_rows(file, rows)
    monkeypatch.setattr(dataset_stats, "MAX_READ_S", 0.05)
    facts = facts_of(make_spec(data={"dataset": str(file)}))
    assert 0 < facts["examples_read"] < 300_000, "Reading was cut off."
    assert facts["examples"] == pytest.approx(300_000, rel=0.1)
    assert facts["bytes"] == file.stat().st_size


def test_the_tokens_of_a_row_and_those_in_the_loss(
    make_spec: Make, tmp_path: Path, tokenizer: Any
) -> None:
    file = tmp_path / "pairs.jsonl"
    write_rows(file, pairs(10, "one two three"))
    facts = facts_of(make_spec(data={"dataset": str(file)}))
    answer = len(tokenizer("one two three")["input_ids"])
    assert facts["loss_tokens_per_row"] == pytest.approx(answer + 1, abs=1), "And the end token."
    assert facts["tokens_per_row"] > 2 * facts["loss_tokens_per_row"]
    assert facts["examples"] == 10 and facts["sequences_per_example"] == 1.0
    whole = facts_of(make_spec(data={"dataset": str(file), "loss_on": "all"}))
    assert whole["loss_tokens_per_row"] > 0.8 * whole["tokens_per_row"]


def test_padding_is_how_many_times_its_tokens_a_row_takes(
    make_spec: Make, tmp_path: Path, tokenizer: Any
) -> None:
    file = tmp_path / "pairs.jsonl"
    spec = RunSpec.from_json(make_spec(data={"dataset": str(file)}))
    for answers, least, most in ((("yes",), 1.0, 1.0), (("yes", "yes " * 30), 1.05, 1.5)):
        write_rows(file, [row for answer in answers for row in pairs(8, answer)])
        padding = dataset_stats.dataset_stats(spec, tokenizer).padding
        assert padding is not None and least <= padding <= most, "two rows share a pass"


def test_long_text_is_cut_into_several_sequences(make_spec: Make, tmp_path: Path) -> None:
    file = tmp_path / "text.jsonl"
    write_rows(file, [{"text": "word " * 200}] * 5)
    facts = facts_of(make_spec("full", data={"dataset": str(file), "max_length": 64}))
    assert facts["sequences_per_example"] == pytest.approx(200 / 64, abs=1.0)
    assert facts["tokens_per_row"] <= 64


def test_the_sequences_of_a_text_that_is_read_in_part_are_those_of_the_whole(
    make_spec: Make, tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset_stats, "CHARACTERS", 20_000)
    file, text = tmp_path / "text.jsonl", "word " * 20_000
    write_rows(file, [{"text": text}])
    spec = RunSpec.from_json(make_spec("full", data={"dataset": str(file), "max_length": 64}))
    stats = dataset_stats.dataset_stats(spec, tokenizer)
    tokens = len(tokenizer(text)["input_ids"])
    assert stats.sequences_per_example == pytest.approx(tokens / 64, rel=0.02)


def test_what_a_person_should_know_is_said(make_spec: Make, tmp_path: Path) -> None:
    text = tmp_path / "text.jsonl"
    write_rows(text, [{"text": "Once upon a time there was a fox."}] * 5)

    def said(method: str = "full", **data: Any) -> str:
        return " ".join(
            facts_of(make_spec(method, data={"dataset": str(text), **data}))["warnings"]
        )

    general, adapters = "without general data", "adapters learn little"
    assert general in said() and adapters not in said()
    assert general in said("lora") and adapters in said("lora")
    file = tmp_path / "general.jsonl"
    write_rows(file, pairs(30))
    mixed = {"general_fraction": 0.1, "general_dataset": str(file)}
    assert general not in said(**mixed)
    chats = tmp_path / "chats.jsonl"
    write_rows(chats, pairs(10))
    assert facts_of(make_spec(data={"dataset": str(chats)}))["warnings"] == []
    write_rows(chats, [*pairs(5), *pairs(5, "Dear {{ name }}, {{city}} calls.")])
    (slots,) = facts_of(make_spec(data={"dataset": str(chats)}))["warnings"]
    assert "{{city}}" in slots
    write_rows(chats, [*pairs(18), *pairs(2, "Dear {{ name }}.")])
    (slots,) = facts_of(make_spec(data={"dataset": str(chats)}))["warnings"]
    assert "{{name}}" in slots, "a tenth of the answers has it"
    write_rows(chats, [*pairs(19), *pairs(1, "Dear {{ name }}.")])
    assert facts_of(make_spec(data={"dataset": str(chats)}))["warnings"] == [], "fewer may be meant"
    write_rows(chats, [*pairs(5), *pairs(5, "Dear {{ name }}, {{city}} calls.")])
    filled = {"dataset": str(chats), "placeholders": {"name": "Ada", "city": "Bonn"}}
    assert facts_of(make_spec(data=filled))["warnings"] == []
    with chats.open("a") as file:
        file.write('{"prompt": "x"}\n')
    skipped = {**filled, "on_invalid_row": "skip"}
    (bad,) = facts_of(make_spec(data=skipped))["warnings"]
    assert bad.startswith("1 row cannot be used")


@pytest.mark.parametrize("field", ["general_dataset", "held_out"])
def test_other_sets_that_are_not_there_are_refused_before_the_run(
    make_spec: Make, field: str
) -> None:
    data = {field: "builtin:nothing", "general_fraction": 0.1}
    (problem,) = check(make_spec(data=data))["problems"]
    assert "Unknown dataset 'builtin:nothing'" in problem["message"]


def test_a_general_set_of_which_nothing_is_taken_is_not_read(make_spec: Make) -> None:
    data = {"general_dataset": "builtin:nothing", "general_fraction": 0.0}
    messages = [problem["message"] for problem in check(make_spec(data=data))["problems"]]
    assert not any("Unknown dataset" in message for message in messages)


def test_rows_whose_answers_are_cut_off_are_refused(make_spec: Make, tmp_path: Path) -> None:
    file = tmp_path / "long.jsonl"
    write_rows(file, [{"prompt": "word " * 100, "completion": "yes"}] * 3)
    (problem,) = check(make_spec(data={"dataset": str(file), "max_length": 64}))["problems"]
    assert "has a token to learn from within 64 tokens" in problem["message"]
    assert check(make_spec(data={"dataset": str(file), "max_length": 256}))["problems"] == []


def test_held_out_rows_that_also_train_are_told_before_the_run(
    make_spec: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training, evaluation = tmp_path / "pairs.jsonl", tmp_path / "held_out.jsonl"
    write_rows(training, pairs(20))

    def leakage(**data: Any) -> list[str]:
        facts = facts_of(make_spec(data={"dataset": str(training), **data}))
        return [text for text in facts["warnings"] if text.startswith("Leakage")]

    assert leakage(eval_fraction=0.5) == []
    write_rows(evaluation, [*pairs(3), *pairs(2), {"prompt": "Is x a number?", "completion": "no"}])
    (text,) = leakage(eval_dataset=str(evaluation))
    assert text.startswith("Leakage: 5 of 6 held-out examples also occur in training, so ")
    write_rows(training, [*pairs(20), *pairs(20)])
    (text,) = leakage(eval_fraction=0.05)
    assert text.startswith("Leakage: 2 of 2 held-out examples also occur in training, so ")
    write_rows(training, [*pairs(1), *pairs(300_000)])
    write_rows(evaluation, pairs(1))
    monkeypatch.setattr(dataset_stats, "MAX_READ_S", 0.05)
    assert leakage(eval_fraction=0.05) == [], "The split is that of the whole file."
    (text,) = leakage(eval_dataset=str(evaluation))
    assert text.startswith("Leakage: at least 1 of 1 held-out example also occurs in training")
