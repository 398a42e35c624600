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
    found = st.session_state.get("new.choices")
    if not found or found["for"] != form.value():
        return
    show(found, is_narrow=True)
    best = found["choices"][0]
    if best["fits"]:
        st.button(
            "Use the first", key="plan.take", icon=":material/check:", on_click=_take,
            args=(best["changes"],),
        )  # fmt: skip


def for_device(spec: dict[str, Any], device: dict[str, Any]) -> None:
    """On Memory: the same for any model and device."""
    asked = {"spec": spec, "device": device}
    if st.button("Find the fastest settings that fit", key="memory.plan"):
        _ask(spec, device, "memory.choices")
        found = st.session_state.get("memory.choices")
        if found:
            st.session_state["memory.choices"] = {**found, "for": asked}
    found = st.session_state.get("memory.choices")
    if found and found["for"] == asked:
        show(found)


def _ask(spec: dict[str, Any], device: dict[str, Any], place: str) -> None:
    st.session_state[place] = None
    try:
        found = wait("Comparing settings …", lambda: planner.plan(spec, device))
        st.session_state[place] = {"for": spec, **found}
    except SpecError as error:
        if place == "new.choices":
            submit.note(error)
            st.rerun()
        tell(error)
    except LabError as error:
        tell(error)


def _take(changes: dict[str, Any]) -> None:
    spec = RunSpec.parse(form.value(), [])
    train = {key.removeprefix("train."): value for key, value in changes.items()}
    form.load(dataclasses.replace(spec, train=dataclasses.replace(spec.train, **train)))


def show(found: dict[str, Any], *, is_narrow: bool = False) -> None:
    """The choices, the best first, and what their speeds rest on."""
    choices = found["choices"][:SHOWN]
    if is_narrow:
        for place, one in enumerate(choices[:SHORT], 1):
            st.markdown(
                f"{place}. **{one['tokens_per_s']:,.0f} tokens/s**, "
                f"{formatting.size(one['peak_bytes'])}: {_words(one)}; "
                f"{escape_markdown(one['why'])}"
            )
    else:
        _table(choices)
    if found["is_measured"]:
        rest = "Speeds follow what this machine's finished runs have reached."
    else:
        rest = f"Speeds take {found['reached']:.0%} of the device's peak rate, a usual share."
    st.caption(
        f"Every choice trains on the same rows a step. {found['reserve']:.0%} of "
        f"{formatting.size(found['device_bytes'])} stay free. Compiling the layers "
        f"{escape_markdown(found['compile'])}. {rest}"
    )


def _words(choice: dict[str, Any]) -> str:
    rows = "1 row" if choice["batch_size"] == 1 else f"{choice['batch_size']} rows"
    times = f" × {choice['accumulation']}" if choice["accumulation"] > 1 else ""
    return (
        f"{rows} a pass{times}, {_recomputes(choice)} recomputed, {choice['loss']} loss, "
        f"{choice['optimizer']}"
    )


def _table(choices: list[dict[str, Any]]) -> None:
    st.dataframe(
        [
            {
                "rows × passes": f"{one['batch_size']} × {one['accumulation']}",
                "tokens/s": one["tokens_per_s"],
                "peak, GB": one["peak_bytes"] / 1e9,
                "recomputes": _recomputes(one),
                "loss": one["loss"],
                "optimizer": one["optimizer"],
                "why": one["why"],
            }
            for one in choices
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
    some = choice["checkpointed_layers"]
    return f"{some} layers" if some else "all layers"
