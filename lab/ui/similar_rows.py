"""Duplicates and Leakage of the Data page: rows side by side that resemble each other."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from lab.data.preview_types import DatasetPreview, ExampleCounts, SimilarPair
from lab.formatting import quantity
from lab.ui.markdown_safety import escape_markdown, plain


def show_duplicates(pairs: Sequence[SimilarPair]) -> None:
    """The rows of the set that resemble an earlier one."""
    if not pairs:
        st.success("No duplicates found.", icon=":material/check_circle:")
        return
    _table(pairs, ("first", "second"))


def show_leaks(preview: DatasetPreview) -> None:
    """The held-out examples that resemble a training example, and what was compared."""
    counts = preview.counts or ExampleCounts()
    if not counts.held_out:
        st.info("No example is held out.", icon=":material/info:")
        return
    st.caption(escape_markdown(_compared(preview, counts)))
    if not preview.leaks:
        st.success(
            "No held-out example resembles a training example.", icon=":material/check_circle:"
        )
        return
    st.markdown(leaks_in_words(counts))
    _table(preview.leaks, ("training", "held-out"))


def leaks_in_words(counts: ExampleCounts) -> str:
    """ "3 held-out examples: 2 repeat a training example, 1 nearly"."""
    near = counts.leaks - counts.exact_leaks
    return (
        f"{quantity(counts.leaks, 'held-out example')} (nearly) in training: "
        f"{counts.exact_leaks:,} exact, {near:,} of a Jaccard similarity of 0.8 or more."
    )


def _compared(preview: DatasetPreview, counts: ExampleCounts) -> str:
    held_out = quantity(counts.held_out, "held-out example")
    if preview.held_out_dataset:
        training = quantity(preview.examples, "training example")
        return f"Compared: {held_out} of {preview.held_out_dataset}, with {training}."
    training = quantity(preview.examples - counts.held_out, "training example")
    return f"Compared: {held_out} of the split, with {training}."


def _table(pairs: Sequence[SimilarPair], names: tuple[str, str]) -> None:
    """Two rows side by side, for each pair."""
    first, second = names
    table = [
        {
            f"{first} row": pair.rows[0],
            f"{second} row": pair.rows[1],
            "similarity": pair.similarity,
            first: pair.texts[0],
            second: pair.texts[1],
        }
        for pair in pairs
    ]
    st.dataframe(plain(table), hide_index=True, width="stretch")
