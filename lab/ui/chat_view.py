"""The parts of the Chat page around its turns: the line of equal terms, and the message field.

Models and answers live in the chat process; this page asks, looks and stops.
"""

from __future__ import annotations

from typing import Any

import streamlit as st

from lab import formatting, paths
from lab.atomic_files import part, read_object
from lab.chat import client, conversations
from lab.chat.conversations import Chat
from lab.checked_run import read_forecast
from lab.data import catalog as datasets
from lab.errors import LabError
from lab.runs import index
from lab.ui import cards, chat_history, chat_settings, links
from lab.ui.markdown_safety import escape_lines, escape_markdown, run_action, tell

MAX_QUESTION_CHARS = 100_000  # characters of a question


def terms(settings: dict[str, Any], chat: Chat | None) -> None:
    """What is the same for all, and whether differences are marked."""
    row = st.container(
        horizontal=True, horizontal_alignment="distribute", vertical_alignment="center"
    )
    row.caption(chat_settings.summary(settings), width="stretch")
    if chat is not None and any(len(turn.answers) > 1 for turn in chat.turns):
        row.toggle(
            "Mark differences", key="chat.differences", persist_state="session",
            help="Marks the words that are not in the first model's answer.",
        )  # fmt: skip


def memory_note() -> None:
    """Which run uses the memory, and what is left beside it."""
    active = index.active_runs()
    if not active:
        return
    run = active[0]
    needed = read_forecast(run).memory.peak_bytes
    takes = f" and takes up to {formatting.size(needed)}" if needed else ""
    name = escape_markdown(index.entry(run).name or run.id)
    with st.container(horizontal=True, vertical_alignment="center"):
        st.caption(
            f":material/memory: **{name}** is training{takes}; {cards.free_memory()} are free. "
            "Answers come more slowly meanwhile.",
            width="content",
        )
        st.page_link(
            links.page("monitor"), label="Monitor", icon=":material/monitoring:",
            query_params={"run": run.id}, width="content",
        )  # fmt: skip


def seen(chat: Chat) -> Chat:
    """The conversation with answers on their way."""
    return client.view(chat.id)


def suggestions(names: list[str]) -> str | None:
    """Prompts to try while the chat is still empty, from the dataset's card."""
    st.caption("Ask all models the same question, for example:")
    dataset_ids = [_dataset_of(name) for name in names]
    cards = [dataset.card for dataset in datasets.built_in() if dataset.id in dataset_ids]
    prompts = (cards or [dataset.card for dataset in datasets.built_in()])[0].get("try", [])
    for prompt in prompts[:4]:
        if st.button(escape_lines(prompt), key=f"chat.try.{prompt}"):
            return str(prompt)
    return None


def _dataset_of(name: str) -> Any:
    if not name.startswith("run:"):
        return None
    try:
        run = paths.run_dir(name.removeprefix("run:").partition("@")[0])
    except LabError:
        return None
    return part(read_object(run.spec) or {}, "data").get("dataset")


def message_field(
    chat: Chat | None, names: list[str], settings: dict[str, Any], suggestion: str | None
) -> None:
    """The field at the bottom. What is written while answers come waits and is sent after them."""
    is_busy = chat is not None and bool(chat.turns) and not chat.turns[-1].is_over
    if chat is not None and is_busy and st.bottom.button(
        "Stop all", icon=":material/stop_circle:", key="chat.stop", shortcut="Esc"
    ):  # fmt: skip
        client.stop(chat.id)
    # not in `st.bottom`: where Streamlit puts it there itself, it scrolls to the newest turn
    written = st.chat_input(
        "Your next message waits until all have answered" if is_busy else "Message all models",
        key="chat.prompt", max_chars=MAX_QUESTION_CHARS,
    )  # fmt: skip
    if chat is not None and is_busy:
        _next(chat, written)
        return
    message = written or suggestion or st.session_state.pop("chat.next", None)
    if not message and chat is not None and chat.next_message:
        message = conversations.take_next(chat.id)
    if message:
        ask(chat, names, settings, message)


def _next(chat: Chat, written: str | None) -> None:
    """The message that waits until all have answered. It is kept with the conversation, so that a
    reload does not lose it."""
    if written:
        conversations.keep_next(chat.id, written)
    waiting = written or chat.next_message
    if not waiting:
        return
    row = st.container(horizontal=True, horizontal_alignment="right")
    row.markdown(f":gray[next: {escape_lines(waiting)}]", width="content")
    if row.button(":material/close:", key="chat.drop", type="tertiary", help="Drop it"):
        run_action(lambda: conversations.take_next(chat.id))


def ask(chat: Chat | None, names: list[str], settings: dict[str, Any], question: str) -> None:
    """Begin a turn, in a new conversation if there is none."""
    try:
        with st.spinner("Starting …"):
            client.ensure()
            chat = chat or conversations.create(names)
            client.ask(chat.id, question, names, settings)
    except LabError as error:
        tell(error)
        st.code(question, language=None, wrap_lines=True)
        return
    chat_history.open_chat(chat.id)
    st.session_state["chat.panes_of"] = chat.id
    st.rerun()
