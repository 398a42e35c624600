"""What a run has forgotten: how it answers general prompts now, and the answers of its base that
have become least likely, beside what it says instead."""

from __future__ import annotations

from typing import Any

import streamlit as st

from lab.atomic_files import finite_number
from lab.formatting import duration, percent, quantity
from lab.paths import RunDir
from lab.runs import record_reader
from lab.runs.metric_series import MetricSeries, series_of
from lab.ui.markdown_safety import escape_lines

MAX_TEXT_CHARS = 400  # characters of an answer


def examples(run: RunDir) -> list[dict[str, Any]]:
    """{"prompt", "before", "now", "rise"} of the newest measurement, the largest rise first; only
    those that are whole."""
    listed = record_reader.last_event(run, "forgotten").get("examples")
    whole = [
        each
        for each in (listed if isinstance(listed, list) else [])
        if isinstance(each, dict)
        and all(isinstance(each.get(key), str) for key in ("prompt", "before", "now"))
        and finite_number(each.get("rise")) is not None
    ]
    return sorted(whole, key=lambda each: -float(each["rise"]))


def behaviour_in_words(series: MetricSeries) -> str:
    """How many answers end by themselves and how long they are, against the base; "" where it was
    not measured."""
    probe = series.probe
    values = [
        finite_number(probe.last(f"probe/{key}"))
        for key in ("ended", "base_ended", "answer_tokens", "base_answer_tokens")
    ]
    if any(value is None for value in values):
        return ""
    ended, base_ended, tokens, base_tokens = (float(value or 0.0) for value in values)
    return (
        f"Answers to six general prompts that end by themselves: **{100 * ended:.0f} %** (base "
        f"{100 * base_ended:.0f} %); mean length **{quantity(tokens, 'token')}** (base "
        f"{base_tokens:.0f})."
    )


def share_of_time(series: MetricSeries) -> str:
    """ "Measuring forgetting took 41 s so far, 14 % of the time of training and measuring."; "" for
    a run that did not write it down."""
    took = series.probe.get("probe/seconds")
    training = finite_number(series.train.last("seconds"))
    total = float(took[took == took].sum()) if len(took) else 0.0  # without NaN
    if not total or training is None:
        return ""
    share = percent(total / (total + training))
    return (
        f"Measuring forgetting took {duration(total)}, {share} of the time of training and "
        "measuring together."
    )


def show(run: RunDir) -> None:
    """Nothing for a run without the forgetting probe."""
    series = series_of(run)
    words = behaviour_in_words(series)
    lost = examples(run)
    if not words and not lost:
        return
    with st.container(border=True):
        st.markdown("**Forgetting: how it answers now**")
        if words:
            st.markdown(words)
        table(lost)
        if share := share_of_time(series):
            st.caption(share)


def table(lost: list[dict[str, Any]]) -> None:
    """The prompts whose answers by the base have become least likely."""
    if not lost:
        return
    st.markdown(
        "**What was forgotten**",
        help="General prompts on which the loss on the base's own answer has risen most, and what "
        "the model answers now, greedily and cut at 48 tokens. The base's answer was sampled.",
    )
    st.table(
        [
            {
                "Prompt": _text(each["prompt"]),
                "Base": _text(each["before"]),
                "Now": _text(each["now"]) or "*(empty answer)*",
                "Loss, nats per token": f"{float(each['rise']):+.2f}".replace("-", "−"),
            }
            for each in lost
        ],
        border="horizontal", hide_index=True,
    )  # fmt: skip


def _text(text: str) -> str:
    short = text if len(text) <= MAX_TEXT_CHARS else f"{text[:MAX_TEXT_CHARS]} …"
    return escape_lines(short.replace("\n", " "))
