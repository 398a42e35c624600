"""The account of a file's rows: what is used, what is not, and what is said of it."""

from __future__ import annotations

from pathlib import Path
from string import ascii_lowercase
from typing import Any

import pytest

from lab.data.example_reader import MAX_REASONS, MAX_SHOWN, ExampleReader, ReadOptions
from lab.errors import LabError
from tests.conftest import write_rows


def rows_of(path: Path, rows: list[Any], **reading: Any) -> ExampleReader:
    write_rows(path / "a.jsonl", rows)
    return ExampleReader(path / "a.jsonl", ReadOptions(**reading))


def test_a_limit_counts_rows_that_can_be_used(tmp_path: Path) -> None:
    rows = [{"text": "a"}, {"text": ""}, {"text": "b"}, {"text": "c"}, {"text": ""}]
    made = rows_of(tmp_path, rows, limit=2, on_invalid_row="skip")
    assert [row.row for row in made] == [1, 3] and made.num_invalid == 1


def test_every_bad_row_is_counted_and_each_reason_is_told_once(tmp_path: Path) -> None:
    rows = [{"text": "a"}, *[{"text": ""}] * 230, {"text": 5}, {"text": 77}, {"text": None}]
    made = rows_of(tmp_path, rows, on_invalid_row="skip")
    assert len(list(made)) == 1 and made.num_invalid == 233
    assert made.invalid_summary() == (
        "row 2 and 229 more: 'text' has no text; row 232 and 1 more: 'text' is 5, not text; "
        "row 234: 'text' is null, not text"
    )


def test_reasons_without_end_are_counted_and_the_first_are_told(tmp_path: Path) -> None:
    letters = [f"{first}{second}" for first in ascii_lowercase for second in ascii_lowercase]
    rows = [{"text": "a"}, *({"text": [word]} for word in letters)]
    made = rows_of(tmp_path, rows, on_invalid_row="skip")
    assert len(list(made)) == 1
    assert len(made.reasons.groups) == MAX_REASONS and made.num_invalid == len(letters)
    assert made.invalid_summary().endswith(f"; and {len(letters) - MAX_SHOWN} more")
    assert made.invalid_summary().count("row ") == MAX_SHOWN


def test_a_file_of_bad_rows_only_is_refused_even_where_they_are_skipped(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="3 of 3 rows"):
        list(rows_of(tmp_path, [{"text": ""}] * 3, on_invalid_row="skip"))


def test_a_row_that_its_template_refuses_is_no_longer_a_good_one(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, [{"text": "a"}, {"text": "b"}], on_invalid_row="skip")
    with pytest.raises(LabError, match=r"2 of 2 rows .* row 1 and 1 more: refused"):
        for row in rows:
            rows.reject(row.row, "refused")
    assert (rows.num_valid, rows.num_invalid) == (0, 2)


@pytest.mark.parametrize(
    ("row", "has_chats"), [({"text": "a"}, False), ({"prompt": "a", "completion": "b"}, True)]
)
def test_whether_a_file_holds_chats(tmp_path: Path, row: Any, has_chats: bool) -> None:
    rows = rows_of(tmp_path, [row] * 2)
    assert len(list(rows)) == 2 and rows.has_chats is has_chats
