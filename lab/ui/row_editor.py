"""The rows of a dataset in a table: searched, edited, dropped, and kept as a new upload."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

import pandas as pd
import streamlit as st

from lab.atomic_files import file_identity
from lab.data import catalog, row_table
from lab.data.row_table import Cells, RowTable
from lab.formatting import quantity
from lab.recent import Recent
from lab.ui.markdown_safety import escape_markdown, plain, user_errors

EDITS = "data.rows.edits"  # {dataset: {"changes": {row: cells}, "dropped": [row]}} of the session
MAX_SHOWN_PROBLEMS = 5

_tables: Recent[tuple[Any, ...], RowTable] = Recent(8)


def show(dataset_id: str) -> None:
    with user_errors():
        dataset = catalog.resolve(dataset_id)
        key = str(dataset.path), *file_identity(dataset.path)
        table = _tables.get(key) or _tables.put(key, row_table.read_table(dataset.path))
    if not table.records:
        st.caption("The file has no rows that a table can show.")
        return
    edits = _edits(dataset_id)
    query = str(st.session_state.get("data.rows.search") or "")
    rows = [row for row in table.matching(query) if row not in edits["dropped"]]
    editor = f"data.rows.{dataset_id}.{query}.{edits['folds']}"
    fold = {"args": (dataset_id, editor, rows)}
    with st.container(horizontal=True, vertical_alignment="bottom"):
        st.text_input(
            "Search", key="data.rows.search", placeholder="words in any column",
            icon=":material/search:", live=True, on_change=_fold, **fold,
        )  # fmt: skip
        if query and rows and table.is_whole:
            label = f"Drop these {quantity(len(rows), 'row')}" if len(rows) > 1 else "Drop this row"
            st.button(
                label, icon=":material/delete:", key="data.rows.drop", on_click=_drop, **fold,
            )  # fmt: skip
    if not table.is_whole:
        st.info(
            f"Only the first {quantity(len(table.records), 'row')} can be read here. Editing "
            "needs all "
            f"rows, {row_table.MAX_ROWS:,} at most: edit the file itself.",
            icon=":material/info:",
        )
    _draw(table, rows, edits, editor)
    if table.is_whole:
        _fold(dataset_id, editor, rows, stays=True)
        _save(dataset_id, table, edits)


def _edits(dataset_id: str) -> dict[str, Any]:
    """What was changed so far in this session. `folds`: how often an editor was emptied into it."""
    everything = st.session_state.setdefault(EDITS, {})
    edits: dict[str, Any] = everything.setdefault(
        dataset_id, {"changes": {}, "dropped": set(), "shown": ({}, set()), "folds": 0}
    )
    return edits


def _draw(table: RowTable, rows: list[int], edits: dict[str, Any], editor: str) -> None:
    """The editor; what it holds itself counts from its next run on."""
    frame = pd.DataFrame(
        [
            {"row": table.numbers[row]}
            | {
                name: plain({**table.cells[row], **edits["changes"].get(row, {})}.get(name))
                for name in table.columns
            }
            for row in rows
        ],
        columns=["row", *table.columns],
    )
    st.data_editor(
        frame, key=editor, hide_index=True, placeholder="–",
        num_rows="delete" if table.is_whole else "fixed",
        disabled=["row"] if table.is_whole else True, height=min(420, 38 * (len(rows) + 2)),
        column_config={
            "row": st.column_config.NumberColumn(width=60, help="The row's number in the file.")
        },
    )  # fmt: skip


def _fold(dataset_id: str, editor: str, rows: list[int], *, stays: bool = False) -> None:
    """Take over what the editor holds. While it `stays`, its edits are only looked at; before its
    rows change, they become those of the dataset."""
    edits, state = _edits(dataset_id), st.session_state.get(editor) or {}
    changes, dropped = changes_of(state, rows)
    if stays:
        edits["shown"] = changes, dropped
        return
    edits["shown"] = {}, set()
    for row, cells in changes.items():
        edits["changes"].setdefault(row, {}).update(cells)
    edits["dropped"] |= dropped
    edits["folds"] += 1


def changes_of(state: dict[str, Any], rows: list[int]) -> tuple[dict[int, Cells], set[int]]:
    """(the changed cells by row of the table, the rows deleted) of an editor's state, which counts
    the rows that it shows."""
    changes = {
        rows[int(shown)]: {str(name): text for name, text in cells.items()}
        for shown, cells in (state.get("edited_rows") or {}).items()
        if int(shown) < len(rows)
    }
    return changes, {rows[shown] for shown in state.get("deleted_rows") or [] if shown < len(rows)}


def _drop(dataset_id: str, editor: str, rows: list[int]) -> None:
    _fold(dataset_id, editor, rows)
    _edits(dataset_id)["dropped"] |= set(rows)


def _save(dataset_id: str, table: RowTable, edits: dict[str, Any]) -> None:
    shown_changes, shown_dropped = edits["shown"]
    changes: dict[int, Cells] = {row: dict(cells) for row, cells in edits["changes"].items()}
    for row, cells in shown_changes.items():
        changes.setdefault(row, {}).update(cells)
    dropped = edits["dropped"] | shown_dropped
    edited = [row for row in changes if row not in dropped]
    if not edited and not dropped:
        st.caption(
            "Double-click a cell to edit it; select rows at their left edge to delete them. The "
            "changed rows are saved as a new dataset; this one does not change."
        )
        return
    records, problems = row_table.edited_records(table, changes, dropped)
    for problem in problems[:MAX_SHOWN_PROBLEMS]:
        st.warning(escape_markdown(problem), icon=":material/warning:")
    with st.container(horizontal=True, vertical_alignment="bottom"):
        name = st.text_input(
            "Dataset name", f"{_stem(dataset_id)}-edited", key=f"data.rows.name.{dataset_id}",
            max_chars=60,
        )  # fmt: skip
        is_ready = bool(records) and not problems and bool((name or "").strip())
        if st.button(
            "Save as a new dataset", icon=":material/save:", key="data.rows.save",
            disabled=not is_ready,
        ):  # fmt: skip
            with user_errors():
                added = catalog.add(f"{(name or '').strip()}.jsonl", row_table.as_lines(records))
            _take_over(dataset_id, added.id)
        st.button("Undo all", icon=":material/undo:", key="data.rows.undo", on_click=_undo,
                  args=(dataset_id,))  # fmt: skip
    rows = quantity(len(edited), "row")
    st.caption(f"{rows} edited, {len(dropped):,} dropped, {len(records):,} left.")


def _undo(dataset_id: str) -> None:
    folds = _edits(dataset_id)["folds"]
    del st.session_state[EDITS][dataset_id]
    _edits(dataset_id)["folds"] = folds + 1


def _stem(dataset_id: str) -> str:
    name = PurePath(dataset_id.partition(":")[2] or dataset_id).name
    return name.partition(".")[0][:40] or "rows"


def _take_over(old: str, new: str) -> None:
    """Open the new dataset, read as the old one was."""
    for key in list(st.session_state):
        if isinstance(key, str) and key.startswith("data.") and f".{old}" in key:
            if not key.startswith("data.rows."):
                st.session_state[key.replace(f".{old}", f".{new}")] = st.session_state[key]
    del st.session_state[EDITS][old]
    st.session_state["data.saved"] = new
    st.rerun()
