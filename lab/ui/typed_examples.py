"""A small dataset that is typed on the page: questions and answers, kept as an upload."""

from __future__ import annotations

import json
from typing import Any

import pandas as pd
import streamlit as st

from lab.data import catalog
from lab.errors import LabError
from lab.formatting import quantity
from lab.ui.markdown_safety import tell

FIRST_ROWS = 10
QUESTION, ANSWER = "Question", "Answer"


def form() -> str:
    """The table and its button; the ID of the upload when it has been saved, else ""."""
    st.caption(
        "One example per row: a question, and the answer that the model should give. Cells can be "
        "pasted from a spreadsheet."
    )
    table = st.data_editor(
        pd.DataFrame({QUESTION: [""] * FIRST_ROWS, ANSWER: [""] * FIRST_ROWS}),
        num_rows="dynamic", hide_index=True, key="data.typed", height=420,
        column_config={
            QUESTION: st.column_config.TextColumn(width="medium", max_chars=4_000),
            ANSWER: st.column_config.TextColumn(width="large", max_chars=20_000),
        },
    )  # fmt: skip
    system = st.text_input(
        "System prompt", key="data.typed.system", placeholder="You are a friendly teacher.",
        help="Optional; added before each question.",
    )  # fmt: skip
    name = st.text_input("Dataset name", "my-chats", key="data.typed.name", max_chars=60)
    rows, problems = examples(table.to_dict("records"), system or "")
    for problem in problems:
        st.warning(problem, icon=":material/warning:")
    is_ready = bool(rows) and not problems
    if st.button(
        f"Save {quantity(len(rows), 'example')}", icon=":material/save:",
        key="data.typed.save", disabled=not is_ready,
        help=None if is_ready else "Fill in a question and its answer first.",
    ):  # fmt: skip
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        try:
            return catalog.add(f"{(name or '').strip()}.jsonl", iter([lines.encode()])).id
        except LabError as error:
            tell(error)
    return ""


def examples(
    table: list[dict[str, Any]], system: str
) -> tuple[list[dict[str, list[dict[str, str]]]], list[str]]:
    """(the chats of the filled rows, what is wrong with the others); empty rows are left out."""
    rows, problems = [], []
    for position, cells in enumerate(table, 1):
        question, answer = (_text(cells.get(column)) for column in (QUESTION, ANSWER))
        if not question and not answer:
            continue
        if not question or not answer:
            missing = "question" if not question else "answer"
            problems.append(f"Row {position} has no {missing}. Fill it in, or empty the row.")
            continue
        turns = [("system", system.strip())] if system.strip() else []
        turns += [("user", question), ("assistant", answer)]
        rows.append({"messages": [{"role": role, "content": text} for role, text in turns]})
    return rows, problems


def _text(cell: Any) -> str:
    """A cell that was never filled holds None or NaN."""
    return cell.strip() if isinstance(cell, str) else ""
