"""The parts of the Chat page. Models live in the chat process, never in this one."""

from __future__ import annotations

import contextlib
from typing import Any

import streamlit as st

from lab import paths
from lab.atomic_files import part, read_object
from lab.chat import client
from lab.data import catalog as datasets
from lab.errors import LabError
from lab.formatting import short_id
from lab.models.catalog import BUILT_IN
from lab.runs import index
from lab.ui.markdown_safety import escape_lines, escape_markdown, plain

MOST = 4
AVATARS = {"user": ":material/person:", "assistant": ":material/smart_toy:"}


def choices() -> dict[str, str]:
    """Models to talk to: name → title. Bases first, then results, newest first."""
    titles = {
        f"base:builtin:{model.name}": f"Base {model.title}" for model in BUILT_IN if model.is_ready
    }
    for run in paths.all_runs():
        if run.artifact.is_dir():
            entry = index.entry(run)
            if not entry.model.startswith("builtin:"):
                title = short_id(entry.model).split("/")[-1]
                titles.setdefault(f"base:{entry.model}", f"Base {title}")
            titles[f"run:{run.id}"] = f"{entry.name or entry.method} ({run.id[-4:]})"
    return titles


def choose(titles: dict[str, str]) -> list[str]:
    """The panes: at first the base and the run of the URL, or the two newest results."""
    selected = [name for name in st.session_state.get("chat.models") or [] if name in titles]
    run_in_url = f"run:{st.query_params.get('run', '')}"
    if run_in_url in titles and st.session_state.get("chat.asked") != run_in_url:
        st.session_state["chat.asked"] = run_in_url
        base = f"base:{index.entry(paths.run_dir(run_in_url[4:])).model}"
        selected = [name for name in (base, run_in_url) if name in titles]
    if not selected and "chat.models" not in st.session_state:
        results = [name for name in titles if name.startswith("run:")][:2]
        selected = [next(iter(titles)), *results]
    st.session_state["chat.models"] = selected
    chosen: list[str] = st.multiselect(
        "Models side by side",
        list(titles),
        key="chat.models",
        format_func=lambda name: str(plain(titles.get(name, name))),
        max_selections=MOST,
        persist_state="session",
        help="The base and up to three results. All get the same prompt, template and seed.",
    )
    if not chosen:
        st.info("Choose at least one model.", icon=":material/info:")
    return chosen


def settings(chosen: list[str]) -> dict[str, Any]:
    """How to answer, the same for all."""
    with st.expander("Same terms for all", icon=":material/balance:"):
        left, right = st.columns(2)
        suggested = _system_prompt(chosen)
        if st.session_state.get("chat.system_of") != suggested:
            st.session_state["chat.system_of"] = suggested
            st.session_state["chat.system"] = suggested
        system = left.text_area(
            "System prompt", key="chat.system", height=100, persist_state="session",
            help="At first the one that the results were trained with. Empty: the template's own.",
        )  # fmt: skip
        seed = right.number_input("Seed", 0, 2**32 - 1, 0, key="chat.seed", persist_state="session")
        temperature = right.slider(
            "Temperature", 0.0, 1.5, 0.0, 0.1, key="chat.temperature", persist_state="session",
            help="0 takes the likeliest token each time.",
        )  # fmt: skip
        tokens = left.number_input(
            "Longest answer (tokens)", 1, 2048, 96, key="chat.tokens", persist_state="session"
        )
    return {
        "system_prompt": system or "",
        "seed": int(seed),
        "temperature": float(temperature),
        "max_tokens": int(tokens),
    }


def _spec(name: str) -> dict[str, Any]:
    try:
        return read_object(paths.run_dir(name.removeprefix("run:")).spec) or {}
    except LabError:
        return {}


def _system_prompt(chosen: list[str]) -> str:
    for name in chosen:
        if name.startswith("run:"):
            return str(part(_spec(name), "data").get("system_prompt") or "")
    return ""


def memory() -> None:
    """Which models are in memory, and the way to free it."""
    loaded = client.loaded()
    with st.container(horizontal=True, vertical_alignment="center"):
        if client.record() is None:
            st.caption("The chat process starts with the first question; it takes a few seconds.")
        else:
            count = "1 model" if len(loaded) == 1 else f"{len(loaded)} models"
            st.caption(f"Chat process running, {count} in memory.")
            if st.button("Free the memory", icon=":material/eject:", key="chat.free"):
                client.end()
                st.toast("The chat process has ended; its memory is free.")
                st.rerun()
        if _history() and st.button("Clear the chat", icon=":material/delete_sweep:", key="clear"):
            st.session_state["chat.history"] = {}
            st.rerun()


def _history() -> dict[str, list[dict[str, Any]]]:
    """Each pane's own conversation: the questions are the same, the answers are its own."""
    history: dict[str, list[dict[str, Any]]] = st.session_state.setdefault("chat.history", {})
    return history


def panes(chosen: list[str]) -> list[Any]:
    """A column for each model, with its conversation so far."""
    if not chosen:
        return []
    titles = choices()
    grid = st.grid(len(chosen), min_column_width=240, border=True)
    columns = [grid.cell() for _ in chosen]
    for column, name in zip(columns, chosen, strict=True):
        with column:
            st.markdown(f"**{escape_markdown(titles.get(name, name))}**")
            for message in _history().get(name, []):
                with st.chat_message(message["role"], avatar=AVATARS[message["role"]]):
                    st.markdown(escape_lines(message["content"]) or "*(nothing)*")
                    if message.get("foot"):
                        st.caption(message["foot"])
    return columns


def suggestions(chosen: list[str]) -> str | None:
    """Prompts to try while the chat is still empty, from the dataset's card."""
    if _history() or not chosen:
        return None
    dataset_ids = [part(_spec(name), "data").get("dataset") for name in chosen]
    cards = [dataset.card for dataset in datasets.built_in() if dataset.id in dataset_ids]
    prompts = (cards or [dataset.card for dataset in datasets.built_in()])[0].get("try", [])
    picked: str | None = st.pills("Try", prompts, key="chat.try", label_visibility="collapsed")
    return picked


def ask(chosen: list[str], columns: list[Any], prompt: str, options: dict[str, Any]) -> None:
    """Stream one answer after another; each pane keeps its conversation."""
    places = []
    for column, name in zip(columns, chosen, strict=True):
        past = _history().setdefault(name, [])
        past.append({"role": "user", "content": prompt})
        with column:
            with st.chat_message("user", avatar=AVATARS["user"]):
                st.markdown(escape_lines(prompt))
            with st.chat_message("assistant", avatar=AVATARS["assistant"]):
                places.append((st.empty(), st.empty()))
    for _, foot in places:
        foot.caption("waiting for its turn …")
    for name, (body, foot) in zip(chosen, places, strict=True):
        answer = _answer(name, body, foot, options)
        _history()[name].append(answer)
    st.session_state["chat.history"] = dict(_history())
    st.rerun()


def conversation(history: list[dict[str, Any]]) -> list[dict[str, str]]:
    """What a model is told of a pane's history: without the questions whose answers failed or were
    interrupted, since a template may demand that the roles alternate."""
    messages: list[dict[str, str]] = []
    for message in history:
        if message.get("failed"):
            messages.pop()
            continue
        if messages and messages[-1]["role"] == message["role"] == "user":
            messages.pop()
        messages.append({"role": message["role"], "content": message["content"]})
    return messages


def _answer(name: str, body: Any, foot: Any, options: dict[str, Any]) -> dict[str, Any]:
    """One model's answer, shown as it comes."""
    messages = conversation(_history()[name])
    text = ""
    try:
        # a rerun or a closed tab ends this script inside the loop: the answer ends with it
        with contextlib.closing(client.stream(name, messages, **options)) as events:
            for event in events:
                if "phase" in event:
                    foot.caption(f"{escape_markdown(event['phase'])} …")
                elif "delta" in event:
                    text += event["delta"]
                    body.markdown(escape_lines(text))
                else:
                    body.markdown(escape_lines(event["text"]))
                    return {"role": "assistant", "content": event["text"], "foot": _foot(event)}
    except LabError as error:
        foot.caption(escape_markdown(str(error)))
        return {
            "role": "assistant",
            "content": "",
            "foot": escape_markdown(str(error)),
            "failed": True,
        }
    return {"role": "assistant", "content": text, "foot": "ended early", "failed": True}


def _foot(event: dict[str, Any]) -> str:
    """Proof of equal terms under each answer."""
    receipt = event["receipt"]
    ended = "ended by itself" if event["finish"] == "stop" else "cut at the longest answer"
    if event["finish"] != "stop" and event["is_at_context_end"]:
        ended = "cut at the end of what the model reads"
    rate = len(event["token_ids"]) / max(event["seconds"], 1e-9)
    differs = f" {receipt['warning']}" if receipt.get("warning") else ""
    return escape_markdown(
        f"{len(event['token_ids'])} tokens, {rate:.0f}/s, {ended}. Prompt "
        f"{receipt['prompt_hash'][:8]}, seed {receipt['seed']}, {receipt['dtype']}.{differs}"
    )
