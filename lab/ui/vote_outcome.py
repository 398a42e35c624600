"""The outcome of a blind vote: who is preferred, how sure that is, and every prompt."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import streamlit as st

from lab.chat import examples
from lab.compare import preference, votes
from lab.compare.vote_sentences import sentences
from lab.compare.votes import BAD, FAILED, IDENTICAL, TIE, VoteSession
from lab.errors import LabError
from lab.formatting import quantity
from lab.ui import chat_panes
from lab.ui.markdown_safety import plain
from lab.visible import visible

DATASET = "preferences.jsonl"
SKIPPED = {IDENTICAL: "identical, skipped", FAILED: "without an answer, skipped"}


def show(session: VoteSession) -> None:
    lines = sentences(preference.outcome(session), lambda name: chat_panes.pane(name).heading)
    with st.container(border=True, key="vote-outcome"):
        st.markdown(lines[0])
        for line in lines[1:]:
            st.caption(line)
    rows = table(session)
    st.dataframe(plain(rows), hide_index=True, key="vote.table")
    row = st.container(horizontal=True, vertical_alignment="bottom")
    row.download_button(
        "CSV", as_csv(rows), f"vote-{session.id}.csv", "text/csv", icon=":material/download:",
        key="vote.csv", on_click="ignore",
    )  # fmt: skip
    row.download_button(
        "JSON", json.dumps(session.to_json(), ensure_ascii=False), f"vote-{session.id}.json",
        "application/json", icon=":material/download:", key="vote.json", on_click="ignore",
    )  # fmt: skip
    _preferences(session)
    st.code(f"python -m lab votes {session.id}", language=None, wrap_lines=True)


def table(session: VoteSession) -> list[dict[str, Any]]:
    """A row for each prompt that was answered, in the order in which they were asked."""
    titles = {name: session.titles.get(name, name) for name in session.models}
    words = {**titles, TIE: "tie", BAD: "all bad", "": "no vote"}
    if len(session.models) == 2:
        words[BAD] = "both bad"
    return [
        {
            "prompt": prompt.prompt,
            "preferred": SKIPPED.get(prompt.skipped) or words[prompt.verdict],
            "shown": ", ".join(titles[name] for name in prompt.order),
            "names itself": ", ".join(titles[name] for name in prompt.named),
        }
        | {f"answer of {titles[name]}": prompt.answers[name] for name in session.models}
        | {f"tokens of {titles[name]}": prompt.tokens.get(name) for name in session.models}
        for prompt in session.prompts
        if prompt.is_answered
    ]


def as_csv(rows: list[dict[str, Any]]) -> str:
    """CSV in which no text acts as a formula of a spreadsheet: what would gets an apostrophe."""
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, list(rows[0]))
        writer.writeheader()
        writer.writerows({key: _harmless(value) for key, value in row.items()} for row in rows)
    return text.getvalue()


def _harmless(value: Any) -> Any:
    is_formula = isinstance(value, str) and value.lstrip()[:1] in ("=", "+", "-", "@")
    return f"'{value}" if is_formula else value


def _preferences(session: VoteSession) -> None:
    """The decided votes as rows of a dataset."""
    rows = votes.preference_rows(session)
    if not rows:
        return
    row = st.container(horizontal=True, vertical_alignment="bottom")
    dataset = row.text_input(
        "Dataset", DATASET, key="vote.dataset",
        help="An uploaded dataset; it is created if it does not exist. Rows have prompt, chosen "
        "and rejected.",
    )  # fmt: skip
    count = quantity(len(rows), "preference")
    if row.button(f"Add {count}", icon=":material/add:", key="vote.add"):
        try:
            total = examples.append(dataset, *rows)
        except (LabError, OSError) as error:
            st.error(visible(str(error)))
        else:
            st.success(
                f"{visible(dataset)} has {quantity(total, 'row')}. Open it on the Data page."
            )
