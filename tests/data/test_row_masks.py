# ruff: noqa: E501 (one case a line)
"""What a row marks, holds and lacks reaches the labels, the Data page, the check and the run alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lab.data import dataset_preview, dataset_stats, format_detection, prepare
from lab.data.preview_types import ExampleView
from lab.errors import LabError
from lab.spec import RunSpec
from tests.conftest import write_rows

ROWS = [
    {
        "messages": [
            {"role": "user", "content": f"w{n} w{n + 1}"},
            {"role": "assistant", "content": f"w{n + 2} w700", "weight": 0},
            {"role": "user", "content": "w5 w6"},
            {"role": "assistant", "content": f"w{n + 3} w701"},
        ],
        "mood": "sad",
    }
    for n in range(12)
]


def spec_of(tmp_path: Path, rows: list[Any], model: Path, **data: Any) -> dict[str, Any]:
    write_rows(tmp_path / "rows.jsonl", rows)
    settings = {"dataset": str(tmp_path / "rows.jsonl"), "max_length": 96, "eval_fraction": 0.0}
    return {"model": str(model), "data": settings | data}


def learned_words(row: ExampleView) -> str:
    return "".join(token.text for token in row.tokens if token.counted)


@pytest.mark.parametrize("loss_on", ["assistant", "completion"])
def test_a_marked_answer_is_shown_and_not_learned(
    tmp_path: Path, tiny_model: Path, tokenizer: Any, loss_on: str
) -> None:
    spec = spec_of(tmp_path, ROWS, tiny_model, loss_on=loss_on)
    page = dataset_preview.look(spec)
    learned = learned_words(page.rows[0])
    assert "w701" in learned and "w700" not in learned, learned
    assert "w700" in "".join(token.text for token in page.rows[0].tokens)
    ready = prepare.prepare(RunSpec.from_json(spec), tokenizer)
    first = ready.train[0]
    counted = tokenizer.decode(
        [i for i, label in zip(first.ids, first.labels, strict=True) if label != -100]
    )
    assert "w701" in counted and "w700" not in counted, counted


def test_where_all_is_learned_a_mark_is_refused_not_passed_over(
    tmp_path: Path, tiny_model: Path, tokenizer: Any
) -> None:
    spec = spec_of(tmp_path, ROWS, tiny_model, loss_on="all")
    says = r"row 1 and 11 more: marks what is not to be learned, and data\.loss_on is all"
    with pytest.raises(LabError, match=says):
        dataset_preview.look(spec)
    for reader in (dataset_stats.dataset_stats, prepare.prepare):
        with pytest.raises(LabError, match=says):
            reader(RunSpec.from_json(spec), tokenizer)
    with pytest.raises(LabError, match=r"[^.]\. Name the right columns|[^.]\. Mend these rows"):
        dataset_preview.look(spec)


def test_page_check_and_run_say_the_same_of_the_rows(
    tmp_path: Path, tiny_model: Path, tokenizer: Any
) -> None:
    spec = spec_of(tmp_path, ROWS, tiny_model)
    notes = [
        "Answers are marked as not to be learned (12 rows, the first is row 1).",
        "'mood' is not used (12 rows, the first is row 1).",
    ]
    assert list(dataset_preview.look(spec).notes) == notes
    assert dataset_stats.dataset_stats(RunSpec.from_json(spec), tokenizer).warnings[:2] == tuple(
        notes
    )
    assert prepare.prepare(RunSpec.from_json(spec), tokenizer).notes[-2:] == notes
    again = prepare.prepare(RunSpec.from_json(spec), tokenizer).notes
    assert again[-2:] == notes, "the stored tokens keep the notes"


def test_a_file_of_marked_answers_only_has_nothing_to_learn(
    tmp_path: Path, tiny_model: Path, tokenizer: Any
) -> None:
    rows = [{"prompt": f"w{n}", "completion": "w1", "label": False} for n in range(4)]
    spec = RunSpec.from_json(spec_of(tmp_path, rows, tiny_model))
    for reader in (dataset_stats.dataset_stats, prepare.prepare):
        with pytest.raises(
            LabError, match=r"marked as not to be learned|has a token to learn from"
        ):
            reader(spec, tokenizer)


def test_preferences_are_refused_once_and_learned_on_request(
    tmp_path: Path, tiny_model: Path, tokenizer: Any
) -> None:
    rows = [{"prompt": f"w{n}", "chosen": "w700", "rejected": "w800"} for n in range(30)]
    spec = spec_of(tmp_path, rows, tiny_model)
    for call in (
        lambda: dataset_preview.look(spec),
        lambda: dataset_stats.dataset_stats(RunSpec.from_json(spec), tokenizer),
    ):
        with pytest.raises(LabError) as caught:
            call()
        message = str(caught.value)
        assert message.count("is a preference") == 1 and "row 1 and 29 more" in message
        assert str(tmp_path) not in message
    spec = spec_of(tmp_path, rows, tiny_model, format="preference")
    page = dataset_preview.look(spec)
    assert "w700" in learned_words(page.rows[0]) and "w800" not in json.dumps(
        page.to_json()["rows"]
    )
    detection = format_detection.detected(spec["data"]["dataset"])
    assert detection.format == "" and "set data.format to preference" in detection.why
    assert prepare.prepare(RunSpec.from_json(spec), tokenizer).facts()["examples"] == 30


def test_a_broken_table_is_told_once_with_the_field_that_mends_it(
    tmp_path: Path, tiny_model: Path
) -> None:
    (tmp_path / "rows.csv").write_text("prompt,completion\n" + "w1,w2\n" + "w1,w2,w3\n" * 40)
    spec = {"model": str(tiny_model), "data": {"dataset": str(tmp_path / "rows.csv")}}
    page = dataset_preview.look(spec)
    (bad,) = page.invalid
    assert (bad.count, bad.first_row) == (40, 3) and "has 3 fields" in bad.reason
    with pytest.raises(LabError) as caught:
        dataset_stats.dataset_stats(RunSpec.from_json(spec), None)
    message = str(caught.value)
    assert (
        message.count("has 3 fields") == 1
        and "data.on_invalid_row" in message
        and str(tmp_path) not in message
    )
