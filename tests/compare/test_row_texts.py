"""Questions and answers of held-out rows, found again in the file that they came from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lab.compare import row_texts as texts
from lab.compare.row_texts import RowText, row_texts
from lab.errors import LabError
from tests.compare.recorded import record
from tests.conftest import write_rows

CHAT = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "So."},
    ]
}
ROWS: list[Any] = [{"ask": "one", "say": "1"}, {"odd": 1}, {"ask": "three", "say": "3"}]


def test_rows_are_those_of_the_file_read_as_the_run_read_it(tmp_path: Path) -> None:
    file, other = tmp_path / "rows.jsonl", tmp_path / "held_out.jsonl"
    write_rows(file, ROWS)
    write_rows(other, [{"ask": "two", "say": "2"}])
    columns = {"prompt": "ask", "completion": "say"}
    run = record("aaaa", data={"dataset": str(file), "columns": columns})
    assert row_texts(run, {1, 3, 9}) == {1: RowText("one", "1"), 3: RowText("three", "3")}
    data = {"dataset": str(file), "eval_dataset": str(other), "columns": columns}
    measured = record("bbbb", data=data)
    assert row_texts(measured, {1, 3}) == {1: RowText("two", "2")}, "of the set that is measured"
    file.unlink()
    with pytest.raises(LabError, match="does not exist"):
        row_texts(run, {1})


def test_what_was_said_before_the_last_answer_is_the_question(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "rows.jsonl"
    write_rows(file, [CHAT])
    run = record("aaaa", data={"dataset": str(file)})
    assert row_texts(run, {1}) == {1: RowText("Be brief.\n\nWhy?", "So.")}
    monkeypatch.setattr(texts, "MAX_TEXT_CHARS", 2)
    assert row_texts(run, {1}) == {1: RowText("Be", "So")}
    write_rows(file, [{"text": "once upon"}])
    assert row_texts(run, {1}) == {1: RowText("", "on")}
