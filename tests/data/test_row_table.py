"""Rows as a table, edited, and as records again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lab.data import row_table
from lab.data.row_table import edited_records, read_table
from tests.conftest import write_rows


def chat(*turns: tuple[str, str]) -> dict[str, object]:
    return {"messages": [{"role": role, "content": text} for role, text in turns]}


@pytest.fixture
def chats_table(tmp_path: Path) -> row_table.RowTable:
    file = tmp_path / "chats.jsonl"
    write_rows(
        file,
        [
            chat(("user", "Hi"), ("assistant", "Hello")),
            chat(
                ("system", "Be kind"), ("user", "Who?"), ("assistant", "Wren"),
                ("user", "Sure?"), ("assistant", "Yes"),
            ) | {"level": 3},
        ],
    )  # fmt: skip
    return read_table(file)


def test_a_chat_has_a_column_for_each_turn(chats_table: row_table.RowTable) -> None:
    assert chats_table.columns == (
        "system", "user 1", "assistant 1", "user 2", "assistant 2", "level",
    )  # fmt: skip
    assert chats_table.cells[0] == {"user 1": "Hi", "assistant 1": "Hello"}
    assert chats_table.cells[1]["level"] == "3" and chats_table.is_whole
    assert chats_table.matching("WREN kind") == [1] and chats_table.matching("") == [0, 1]
    assert chats_table.matching("hello wren") == []


def test_unchanged_rows_are_the_same_records(chats_table: row_table.RowTable) -> None:
    records, problems = edited_records(chats_table, {1: {"level": "3"}}, [])
    assert records == list(chats_table.records) and problems == []


def test_turns_are_edited_added_and_emptied(chats_table: row_table.RowTable) -> None:
    changes: dict[int, row_table.Cells] = {
        0: {"assistant 1": "Good day", "user 2": "Bye", "assistant 2": "So long"},
        1: {"user 2": None, "assistant 2": "", "level": "[4]", "system": ""},
    }
    records, problems = edited_records(chats_table, changes, [])
    assert problems == []
    assert records[0] == chat(
        ("user", "Hi"), ("assistant", "Good day"), ("user", "Bye"), ("assistant", "So long")
    )
    assert records[1] == chat(("user", "Who?"), ("assistant", "Wren")) | {"level": [4]}


def test_what_is_wrong_is_told_with_the_row_of_the_file(chats_table: row_table.RowTable) -> None:
    changes: dict[int, row_table.Cells] = {0: {"user 1": " "}, 1: {"level": "3 apples"}}
    _, problems = edited_records(chats_table, changes, [])
    assert problems[0] == "Row 1, user 1: the turn is empty. Fill it in, or drop the row."
    assert problems[1].startswith("Row 2, level: not valid JSON")
    records, problems = edited_records(chats_table, changes, [0, 1])
    assert (records, problems) == ([], []), "what is dropped is not wrong any more"


def test_other_records_keep_their_types(tmp_path: Path) -> None:
    file = tmp_path / "quiz.jsonl"
    rows = [{"question": "2+2", "choices": ["3", "4"], "answer": 1}, {"question": "007"}]
    write_rows(file, rows)
    table = read_table(file)
    assert table.columns == ("question", "choices", "answer") and not table.has_turns
    assert table.cells[0]["choices"] == '["3", "4"]'
    changes: dict[int, row_table.Cells] = {
        0: {"answer": "0", "question": "3+0"}, 1: {"answer": "2"},
    }  # fmt: skip
    records, _ = edited_records(table, changes, [])
    assert records == [
        rows[0] | {"question": "3+0", "answer": 0},
        {"question": "007", "answer": "2"},
    ]
    written = b"".join(row_table.as_lines(records)).decode().splitlines()
    assert [json.loads(line) for line in written] == records


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "assistant", "content": "first"}],
        [{"role": "user", "content": [{"type": "text", "text": "parts"}]}],
        [{"role": "user", "content": "x", "name": "eve"}],
        [{"role": ["user", "assistant"][turn % 2], "content": "x"} for turn in range(10)],
        ["text"],
        [],
    ],
)
def test_a_chat_of_another_form_is_one_cell(tmp_path: Path, messages: list[object]) -> None:
    file = tmp_path / "odd.jsonl"
    write_rows(file, [chat(("user", "Hi"), ("assistant", "Hello")), {"messages": messages}])
    table = read_table(file)
    assert (
        table.columns == ("messages",) and json.loads(str(table.cells[1]["messages"])) == messages
    )


def test_a_part_of_a_file_is_not_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "rows.jsonl"
    write_rows(file, [{"text": f"row {number}"} for number in range(4)])
    assert read_table(file).is_whole
    monkeypatch.setattr(row_table, "MAX_ROWS", 3)
    assert not read_table(file).is_whole and read_table(file).numbers == (1, 2, 3)
    monkeypatch.setattr(row_table, "MAX_ROWS", 2000)
    file.write_text('{"text": "a"}\nno JSON\n{"text": "b"}\n')
    table = read_table(file)
    assert not table.is_whole and table.numbers == (1, 3), "the bad row would be lost"
    monkeypatch.setattr(row_table, "SECONDS", -1.0)
    assert not read_table(file).is_whole


def test_a_table_of_csv_is_text(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("question,answer\nWho?,Wren\n", encoding="utf-8")
    table = read_table(file)
    records, _ = edited_records(table, {0: {"answer": "007"}}, [])
    assert records == [{"question": "Who?", "answer": "007"}]
