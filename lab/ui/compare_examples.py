"""Answers of Compare beside each other, and the held-out examples on which two runs differ."""

from __future__ import annotations

import numpy as np
import pandas as pd
import streamlit as st

from lab.compare.contestants import Contestant, same_rows
from lab.compare.row_texts import RowText, row_texts
from lab.errors import LabError
from lab.recent import Recent
from lab.runs.metric_series import series_of
from lab.ui import chat_turns, colours, end_card, forgotten
from lab.ui.compare_runs import name_of, plain_name
from lab.ui.markdown_safety import escape_lines, escape_markdown, plain

ORDERS = ("Largest difference", "First lower", "Second lower")
MAX_ROWS = 200
MAX_PROMPT_CHARS = 80  # characters of a prompt in the table

_texts: Recent[tuple[str, str], dict[int, RowText]] = Recent(8)


def answers(shown: list[Contestant]) -> None:
    """What the base and the runs say to the same prompt, from the samples of the runs."""
    samples = {each.id: end_card.samples(each.first.run) for each in shown}
    prompts = list(
        dict.fromkeys(
            str(event.get("prompt", "")) for events in samples.values() for event in events
        )
    )
    if not prompts:
        st.caption("These runs have no samples. Chat with them to see their answers.")
        return
    labels = [str(plain(text.replace("\n", " ")[:120])) for text in prompts]
    row = st.container(horizontal=True, vertical_alignment="bottom")
    position = row.selectbox(
        "Prompt", range(len(prompts)), format_func=lambda index: labels[index],
        key="compare.prompt",
    )  # fmt: skip
    marks = row.toggle("Mark differences", key="compare.marks")
    texts: list[tuple[str, str]] = []
    for each in shown:
        events = [event for event in samples[each.id] if event.get("prompt") == prompts[position]]
        if events and events[0]["step"] == 0 and not texts:
            texts.append((f"{colours.BASE_DOT} base model", str(events[0].get("text", ""))))
        if events and events[-1]["step"] > 0:
            title = f"{name_of(each)} after step {events[-1]['step']:,}"
            texts.append((title, str(events[-1].get("text", ""))))
    grid = st.grid(max(1, len(texts)), min_column_width=250, gap="small", border=True)
    for index, (title, text) in enumerate(texts):
        with grid.cell():
            st.markdown(f"**{title}**")
            if marks and index:
                st.markdown(chat_turns.marked(text, texts[0][1]))
            else:
                st.markdown(escape_lines(text) or "*(empty answer)*")


def by_example(shown: list[Contestant]) -> None:
    """Held-out examples with the loss of two runs on each, and the text of the chosen one; or what
    a run has forgotten."""
    if any(forgotten.examples(each.first.run) for each in shown) and st.toggle(
        "What was forgotten", key="compare.forgotten",
        help="General prompts whose answers by the base have become least likely.",
    ):  # fmt: skip
        _forgotten(shown)
        return
    measured = [each for each in shown if each.row_losses() is not None]
    terms = [each.first.losses for each in measured]
    if len(measured) < 2 or not same_rows(terms):
        st.caption(
            "This needs two runs measured on the same held-out examples; runs of earlier "
            "versions did not record the loss of each example."
        )
        return
    with st.container(horizontal=True, vertical_alignment="bottom"):
        pair = [
            st.selectbox(
                label, range(len(measured)), index=min(index, len(measured) - 1),
                key=f"compare.row.{index}",
                format_func=lambda position: plain_name(measured[position]),
            )
            for index, label in enumerate(("First", "Second"))
        ]  # fmt: skip
        order = st.segmented_control(
            "Order", ORDERS, default=ORDERS[0], required=True, key="compare.row.order"
        )
    first, second = (measured[position] for position in pair)
    frame = example_rows(first, second, str(order))
    if frame.empty:
        st.markdown("No examples match.")
        return
    texts = _texts_of(first)
    frame["Example"] = [
        str(plain(" ".join((texts[row].prompt or texts[row].answer).split())[:MAX_PROMPT_CHARS]))
        if row in texts
        else f"row {row}"
        for row in frame["Row"]
    ]
    event = st.dataframe(
        frame, hide_index=True, on_select="rerun", selection_mode="single-row",
        key=f"compare.rows.{first.id}.{second.id}.{order}", height=320,
        column_order=["Example", plain_name(first), plain_name(second), "Difference", "Row"],
        column_config={
            name: st.column_config.NumberColumn(format="%+.3f" if name == "Difference" else "%.3f")
            for name in (plain_name(first), plain_name(second), "Difference")
        },
        alt="Held-out examples with the loss of both runs, in nats per token",
    )  # fmt: skip
    chosen = event["selection"]["rows"]
    row = int(frame["Row"].iloc[chosen[0]]) if chosen and chosen[0] < len(frame) else None
    if row is not None and row in texts:
        with st.container(border=True):
            st.caption(f"ROW {row} OF THE FILE")
            if texts[row].prompt:
                st.markdown(f":material/chat: {escape_lines(texts[row].prompt)}")
            st.markdown(escape_lines(texts[row].answer))


def _forgotten(shown: list[Contestant]) -> None:
    """Run by run; of several seeds the first."""
    for each in shown:
        run = each.first.run
        st.markdown(f"##### {name_of(each)}")
        if words := forgotten.behaviour_in_words(series_of(run)):
            st.markdown(words)
        lost = forgotten.examples(run)
        forgotten.table(lost)
        if not lost:
            st.caption("Trained without the forgetting probe, or not finished yet.")


def example_rows(first: Contestant, second: Contestant, order: str) -> pd.DataFrame:
    """One line a held-out example: its row in the file, both losses in nats a token, and the first
    less the second; at most 200."""
    losses = first.first.losses
    rows = [row for each in (first, second) if (row := each.row_losses()) is not None]
    assert losses is not None and len(rows) == 2
    means = [row.mean(0) / losses.tokens for row in rows]
    difference = means[0] - means[1]
    places = {
        ORDERS[0]: np.argsort(-np.abs(difference), kind="stable"),
        ORDERS[1]: np.argsort(difference, kind="stable")[: int((difference < 0).sum())],
        ORDERS[2]: np.argsort(-difference, kind="stable")[: int((difference > 0).sum())],
    }[order][:MAX_ROWS]
    names = [plain_name(first), plain_name(second)]
    if names[0] == names[1]:
        names[1] += " "
    return pd.DataFrame(
        {
            "Row": losses.sources[places],
            names[0]: means[0][places],
            names[1]: means[1][places],
            "Difference": difference[places],
        }
    )


def _texts_of(contestant: Contestant) -> dict[int, RowText]:
    """Read once; empty where the dataset is gone, which may come back."""
    run, losses = contestant.first.run, contestant.first.losses
    assert losses is not None
    key = (run.id, losses.rows_hash)
    texts = _texts.get(key)
    if texts is not None:
        return texts
    try:
        return _texts.put(key, row_texts(run, set(losses.sources.tolist())))
    except LabError as error:
        st.caption(escape_markdown(str(error)))
        return {}
