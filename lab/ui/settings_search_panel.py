"""The fastest settings that fit a device, asked for by a button, and taken over by another."""

from __future__ import annotations

import dataclasses
from typing import Any

import streamlit as st

from lab import formatting, host
from lab.errors import LabError, SpecError
from lab.preflight.client import planner
from lab.spec import RunSpec
from lab.ui import form, submit
from lab.ui.markdown_safety import escape_markdown, tell
from lab.ui.waiting import wait

SHOWN, SHORT = 6, 3  # choices in a table, in a narrow column


def for_form() -> None:
    """On New run: look for faster settings of what the form describes, on this machine."""
    if st.button("Find the fastest settings that fit", key="plan", width="stretch"):
        # a run in 16 bits is for this processor, too, where there is nothing else
        _ask(form.value(), {} if host.gpus() else {"kind": "cpu"}, "new.choices")
    search = st.session_state.get("new.choices")
    if not search or search["for"] != form.value():
        return
    show(search, is_narrow=True)
    best = search["choices"][0]
    if best["fits"]:
        st.button(
            "Use the first", key="plan.take", icon=":material/check:", on_click=_take,
            args=(best["changes"],),
        )  # fmt: skip


def for_device(spec: dict[str, Any], device: dict[str, Any]) -> None:
    """On Memory: the same for any model and device."""
    question = {"spec": spec, "device": device}
    if st.button("Find the fastest settings that fit", key="memory.plan"):
        _ask(spec, device, "memory.choices")
        search = st.session_state.get("memory.choices")
        if search:
            st.session_state["memory.choices"] = {**search, "for": question}
    search = st.session_state.get("memory.choices")
    if search and search["for"] == question:
        show(search)


def _ask(spec: dict[str, Any], device: dict[str, Any], session_key: str) -> None:
    st.session_state[session_key] = None
    try:
        answer = wait("Comparing settings …", lambda: planner.plan(spec, device))
        st.session_state[session_key] = {"for": spec, **answer}
    except SpecError as error:
        if session_key == "new.choices":
            submit.note(error)
            st.rerun()
        tell(error)
    except LabError as error:
        tell(error)


def _take(changes: dict[str, Any]) -> None:
    spec = RunSpec.parse(form.value(), [])
    train = {key.removeprefix("train."): value for key, value in changes.items()}
    form.load(dataclasses.replace(spec, train=dataclasses.replace(spec.train, **train)))


def show(search: dict[str, Any], *, is_narrow: bool = False) -> None:
    """The choices, the best first, and what their speeds rest on."""
    choices = search["choices"][:SHOWN]
    if is_narrow:
        for rank, choice in enumerate(choices[:SHORT], 1):
            st.markdown(
                f"{rank}. **{choice['tokens_per_s']:,.0f} tokens/s**, "
                f"{formatting.size(choice['peak_bytes'])}: {_words(choice)}; "
                f"{escape_markdown(choice['why'])}"
            )
    else:
        _table(choices)
    if search["is_measured"]:
        basis = "Speeds follow what this machine's finished runs have reached."
    else:
        basis = f"Speeds take {search['reached']:.0%} of the device's peak rate, a usual share."
    st.caption(
        f"Every choice trains on the same rows a step. {search['reserve']:.0%} of "
        f"{formatting.size(search['device_bytes'])} stay free. Compiling the layers "
        f"{escape_markdown(search['compile'])}. {basis}"
    )


def _words(choice: dict[str, Any]) -> str:
    rows = "1 row" if choice["batch_size"] == 1 else f"{choice['batch_size']} rows"
    times = (
        f" × {choice['gradient_accumulation_steps']}"
        if choice["gradient_accumulation_steps"] > 1
        else ""
    )
    return (
        f"{rows} a pass{times}, {_recomputes(choice)} recomputed, {choice['loss']} loss, "
        f"{choice['optimizer']}"
    )


def _table(choices: list[dict[str, Any]]) -> None:
    st.dataframe(
        [
            {
                "rows × passes": f"{choice['batch_size']} × "
                f"{choice['gradient_accumulation_steps']}",
                "tokens/s": choice["tokens_per_s"],
                "peak, GB": choice["peak_bytes"] / 1e9,
                "recomputes": _recomputes(choice),
                "loss": choice["loss"],
                "optimizer": choice["optimizer"],
                "why": choice["why"],
            }
            for choice in choices
        ],
        hide_index=True,
        column_config={
            "tokens/s": st.column_config.NumberColumn(format="%.0f", width="small"),
            "peak, GB": st.column_config.NumberColumn(format="%.2f", width="small"),
        },
    )


def _recomputes(choice: dict[str, Any]) -> str:
    if choice["activation_checkpointing"] != "on":
        return "nothing"
    layers = choice["checkpointed_layers"]
    return f"{layers} layers" if layers else "all layers"
