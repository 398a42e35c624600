"""The table of rows on the Data page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lab.data import catalog, dataset_preview
from lab.data.preview_types import DatasetPreview
from lab.preflight.client import planner
from lab.ui import row_editor
from tests.conftest import write_rows
from tests.ui.conftest import Page, words
from tests.ui.screen import Screen


@pytest.fixture(autouse=True)
def look_here(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(spec: object, most: int) -> object:
        return DatasetPreview.from_json(
            json.loads(json.dumps(dataset_preview.look(spec, most).to_json()))
        )

    monkeypatch.setattr(planner, "look", answer)
    monkeypatch.setattr(planner, "warm", lambda: None)


def upload(rows: list[dict[str, Any]]) -> str:
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    return catalog.add("tickets.jsonl", iter([lines])).id


ROWS = [{"text": f"the ticket {number}", "label": "ab"[number % 2]} for number in range(6)]


def test_an_editor_counts_the_rows_that_it_shows() -> None:
    state = {"edited_rows": {1: {"text": "new"}, "0": {"label": None}}, "deleted_rows": [2, 9]}
    changes, dropped = row_editor.changes_of(state, [10, 20, 30])
    assert changes == {20: {"text": "new"}, 10: {"label": None}} and dropped == {30}
    assert row_editor.changes_of({}, [1]) == ({}, set())


def test_edits_are_taken_over_once_before_the_rows_change(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen()
    monkeypatch.setattr(row_editor, "st", screen)
    screen.session_state["editor"] = {"edited_rows": {0: {"text": "new"}}, "deleted_rows": [1]}
    row_editor._fold("set", "editor", [7, 8], stays=True)
    edits = row_editor._edits("set")
    assert edits["shown"] == ({7: {"text": "new"}}, {8}) and edits["changes"] == {}
    row_editor._fold("set", "editor", [7, 8])
    assert edits["changes"] == {7: {"text": "new"}} and edits["dropped"] == {8}
    assert edits["shown"] == ({}, set()) and edits["folds"] == 1, "the next editor is a new one"


def test_what_was_edited_before_rows_are_dropped_stays_with_its_row(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    screen = Screen()
    monkeypatch.setattr(row_editor, "st", screen)
    screen.session_state["editor"] = {"edited_rows": {1: {"text": "new"}}}
    row_editor._drop("set", "editor", [7, 8])
    edits = row_editor._edits("set")
    assert edits["dropped"] == {7, 8} and edits["changes"] == {8: {"text": "new"}}
    assert edits["folds"] == 1, "the next editor begins without them"


def test_rows_are_searched_dropped_and_kept_as_a_new_dataset(open_page: Page) -> None:
    dataset_id = upload(ROWS)
    at = open_page("data", dataset=dataset_id)
    at.session_state[f"data.format.{dataset_id}"] = "labels"
    at.session_state["data.tab"] = "Rows"
    at.run()
    assert "Double-click a cell to edit it" in words(at)
    at.text_input(key="data.rows.search").set_value("ticket 4").run()
    assert not at.exception
    at.button(key="data.rows.drop").click().run()
    assert "0 rows edited, 1 dropped, 5 left." in words(at)
    at.text_input(key="data.rows.search").set_value("").run()
    edits = at.session_state[row_editor.EDITS][dataset_id]
    edits["changes"][0] = {"text": "the first ticket"}  # as an editor leaves it
    at.run()
    assert "1 row edited, 1 dropped, 5 left." in words(at)
    at.button(key="data.rows.save").click().run()
    assert not at.exception
    assert at.selectbox(key="data.upload").value == "upload:tickets-edited.jsonl"
    stored = catalog.resolve("upload:tickets-edited.jsonl").path.read_text().splitlines()
    expected = [ROWS[0] | {"text": "the first ticket"}, *ROWS[1:4], ROWS[5]]
    assert [json.loads(line) for line in stored] == expected
    original = catalog.resolve(dataset_id).path.read_text().splitlines()
    assert [json.loads(line) for line in original] == ROWS, "this one stays as it is"
    state = at.session_state
    assert state["data.format.upload:tickets-edited.jsonl"] == "labels", "read as the old one"


def test_a_dropped_row_is_out_of_the_table_and_an_edited_one_shows_its_new_text(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dataset_id, screen = upload(ROWS), Screen()
    monkeypatch.setattr(row_editor, "st", screen)
    screen.session_state["data.rows.search"] = "ticket"
    edits = row_editor._edits(dataset_id)
    edits["dropped"].add(4)
    edits["changes"][1] = {"text": "a new text"}
    row_editor.show(dataset_id)
    ((frame,),) = [args for kind, args, _ in screen.calls if kind == "data_editor"]
    assert list(frame["row"]) == [1, 2, 3, 4, 6]
    assert list(frame["text"])[1] == "a new text"
    assert "1 row edited, 1 dropped, 5 left." in screen.texts("caption")


def test_all_edits_are_undone(open_page: Page) -> None:
    dataset_id = upload(ROWS)
    at = open_page("data", dataset=dataset_id)
    at.session_state["data.tab"] = "Rows"
    at.run()
    at.text_input(key="data.rows.search").set_value("ticket 4").run()
    at.button(key="data.rows.drop").click().run()
    at.button(key="data.rows.undo").click().run()
    at.text_input(key="data.rows.search").set_value("").run()
    assert "Double-click a cell" in words(at)


def test_rows_that_cannot_be_trained_on_can_be_mended(open_page: Page, tmp_path: Path) -> None:
    file = tmp_path / "odd.jsonl"
    write_rows(file, [{"prompt": "only a question"}])
    at = open_page("data", dataset=str(file))
    assert at.text_input(key="data.rows.search") is not None


def test_a_part_of_a_file_is_only_looked_at(
    open_page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lab.data.row_table.MAX_ROWS", 3)
    row_editor._tables._entries.clear()
    dataset_id = upload(ROWS)
    at = open_page("data", dataset=dataset_id)
    at.session_state["data.tab"] = "Rows"
    at.run()
    text = words(at)
    assert "Only the first 3 rows can be read here" in text and "Double-click" not in text
    row_editor._tables._entries.clear()
