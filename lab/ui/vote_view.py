"""The blind vote on the Chat page: answers without names, in shuffled order, and the buttons."""

from __future__ import annotations

from typing import Any

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from lab.chat import client, conversations
from lab.compare import votes
from lab.compare.votes import BAD, FAILED, IDENTICAL, TIE, VotePrompt, VoteSession
from lab.errors import LabError
from lab.formatting import quantity
from lab.ui import chat_turns, chat_view, vote_outcome, vote_setup
from lab.ui.fragments import fragment
from lab.ui.markdown_safety import escape_lines, escape_markdown, run_action, user_errors
from lab.ui.safe_markdown import safe_markdown

OPEN, BLIND = "Open", "Blind vote"
LETTERS = "ABCD"
NUMBERS = ("none", "one", "two", "three", "four")


def is_chosen() -> bool:
    """Whether the page shows a blind vote; the address of one opens it."""
    st.session_state.setdefault("chat.mode", BLIND if st.query_params.get("vote") else OPEN)
    # told in every run, and not kept beyond the page: a link to the chat of a run opens the chat
    st.session_state["chat.mode"] = st.session_state["chat.mode"]
    return bool(st.session_state["chat.mode"] == BLIND)


def switch(row: DeltaGenerator) -> None:
    """Open or blind."""
    row.segmented_control(
        "Mode", [OPEN, BLIND], key="chat.mode", required=True, label_visibility="collapsed"
    )


def close() -> None:
    """Leave the vote; it stays on the disk."""
    st.session_state.pop("vote.id", None)
    st.query_params.pop("vote", None)


def show(names: list[str], titles: dict[str, str], settings: dict[str, Any]) -> None:
    """A new vote, the one that goes on, or its outcome."""
    session = current()
    if session is None:
        vote_setup.show(names, titles, settings)
    elif session.is_over:
        vote_outcome.show(session)
    else:
        _ballot(session)


def current() -> VoteSession | None:
    """The vote of the address or of this browser; None for a new one."""
    requested = st.query_params.get("vote") or st.session_state.get("vote.id")
    if not requested:
        return None
    try:
        session = votes.read(str(requested))
    except LabError as error:
        close()
        st.warning(escape_markdown(error.message))
        return None
    vote_setup.open_vote(session.id)
    return session


def _ballot(session: VoteSession) -> None:
    """The prompt at hand with its answers, or the field for the next one."""
    st.query_params.pop("models", None)  # the address names nobody either
    row = st.container(
        horizontal=True, horizontal_alignment="distribute", vertical_alignment="center"
    )
    row.caption(
        "Order shuffled for each prompt; names, colours and speeds are hidden until the last vote.",
        width="stretch",
    )
    row.toggle(
        "Mark differences", key="vote.differences", persist_state="session",
        help="Marks the words that are not in answer A.",
    )  # fmt: skip
    if row.button("End early", icon=":material/flag:", key="vote.end", help=_end_help(session)):
        run_action(lambda: _end(session.id))
    index = at_hand(session)
    if index is not None:
        _prompt(session, index)
    elif session.source:
        st.info("No prompt of the set is left to vote on.")
        _next_button(session)
    with st.bottom:
        if index is not None and session.prompts[index].order:
            _buttons(session, index)
        if not session.source:
            _field(session, index)


def _end_help(session: VoteSession) -> str:
    if session.planned is None:
        return "Shows the names. No vote can be given after that."
    return f"Shows the names; the outcome says that it ended before the planned {session.planned}."


def at_hand(session: VoteSession) -> int | None:
    """The place of the prompt that is shown: of typed ones the last, of a set the last one voted on
    until the next one is requested; None before the first, and of a set without any to vote on."""
    if not session.source:
        return len(session.prompts) - 1 if session.prompts else None
    index = st.session_state.get(f"vote.at.{session.id}")
    if isinstance(index, int) and index < len(session.prompts):
        if session.prompts[index].skipped != IDENTICAL:
            return index
    if session.is_complete or session.is_exhausted:
        voted = [n for n, prompt in enumerate(session.prompts) if session.voter in prompt.votes]
        return voted[-1] if voted else None
    return session.next_prompt()


def _prompt(session: VoteSession, index: int) -> None:
    prompt = session.prompts[index]
    with user_errors():
        if not prompt.is_answered:
            prompt = ask(session, index).prompts[index]
    with st.container(horizontal=True, horizontal_alignment="right"):
        with st.container(key=f"ask-{index}", width="content"):
            st.markdown(escape_lines(prompt.prompt))
    if not prompt.is_answered:
        _wait(session.id, index, prompt.conversation)
        return
    if prompt.skipped == IDENTICAL:
        st.info("The answers are identical. The prompt is skipped and counted.")
        st.markdown(safe_markdown(next(iter(prompt.answers.values()))))
    elif prompt.skipped == FAILED:
        st.warning("An answer is missing or was cut off. The prompt is skipped and counted.")
        if st.session_state.get(f"vote.error.{index}"):
            st.caption(escape_markdown(st.session_state[f"vote.error.{index}"]))
        if st.button("Ask again", icon=":material/refresh:", key="vote.again"):
            run_action(lambda: _ask_again(session.id, index))
    else:
        grid = st.grid(len(prompt.order), min_column_width=chat_turns.PANE_WIDTH, border=True)
        for letter, name in zip(LETTERS, prompt.order, strict=False):
            with grid.cell():
                st.markdown(f":gray[●] **Answer {letter}**")
                st.markdown(_text(prompt, name) or ":gray[The answer is empty.]")
                st.caption(quantity(prompt.tokens[name], "token"))
    if session.source:
        _ask_ahead(session, index)
        if prompt.skipped:
            _next_button(session)


def _text(prompt: VotePrompt, name: str) -> str:
    """Markdown of an answer; what differs from answer A marked where that is wanted."""
    first = prompt.order[0]
    if st.session_state.get("vote.differences") and name != first:
        return chat_turns.marked(prompt.answers[first], prompt.answers[name])
    return safe_markdown(prompt.answers[name])


def ask(session: VoteSession, index: int) -> VoteSession:
    """Ask the prompt at `place` unless it was, in a conversation of its own. Raises LabError."""
    if session.prompts[index].conversation:
        return session
    client.ensure()
    chat = conversations.create(session.models, vote=session.id)
    client.ask(chat.id, session.prompts[index].prompt, session.models, session.settings)
    with votes.change(session.id) as changed:
        changed.prompts[index].conversation = changed.prompts[index].conversation or chat.id
    return changed


def _ask_ahead(session: VoteSession, index: int) -> None:
    """Ask the next prompt of a set while the person reads this one."""
    for ahead in range(index + 1, len(session.prompts)):
        if not session.prompts[ahead].is_answered:
            if not session.is_complete:
                with user_errors():
                    ask(session, ahead)
            return


def _wait(session_id: str, index: int, conversation: str) -> None:
    """Nothing is shown until all have answered: who is first would tell who is who."""

    @fragment(run_every=chat_turns.LOOK_S)
    def look() -> None:
        with user_errors():
            chat = client.view(conversation)
            if chat.turns and chat.turns[-1].is_over:
                with votes.change(session_id) as session:
                    session.take_answers(index, chat)
                if session.prompts[index].skipped == FAILED:
                    st.session_state[f"vote.at.{session_id}"] = index  # it can be asked again
                for error in {answer.error for answer in chat.turns[-1].answers.values()} - {""}:
                    st.session_state[f"vote.error.{index}"] = error
                st.rerun()
        st.caption(":material/hourglass_top: All models answer; their answers appear together.")

    look()


def _buttons(session: VoteSession, index: int) -> None:
    """The vote, and how many there are."""
    prompt = session.prompts[index]
    row = st.container(horizontal=True, horizontal_alignment="center", vertical_alignment="center")
    given = prompt.votes.get(session.voter, "")
    for position, (vote, label) in enumerate(choices(prompt.order), 1):
        if row.button(
            label, key=f"vote.{position}", shortcut=str(position),
            type="primary" if vote == given else "secondary",
            disabled=session.is_complete and not given,
        ):  # fmt: skip
            run_action(lambda vote=vote: _vote(session.id, index, vote))  # type: ignore[misc]
    row.caption(progress(session, index), width="content")
    if session.is_complete or (given and session.is_exhausted):
        if row.button("Show the names", key="vote.names", type="primary", shortcut="Enter"):
            run_action(lambda: _end(session.id))
    elif given and session.source:
        _next_button(session, row)


def choices(order: list[str]) -> list[tuple[str, str]]:
    """(vote, label) of each button from left to right."""
    if len(order) == 2:
        left, right = order
        return [
            (left, ":material/arrow_back: A is better"), (TIE, "Tie"), (BAD, "Both bad"),
            (right, "B is better :material/arrow_forward:"),
        ]  # fmt: skip
    best = [(name, f"{letter} is best") for letter, name in zip(LETTERS, order, strict=False)]
    return [*best, (TIE, "Tie"), (BAD, "All bad")]


def progress(session: VoteSession, index: int) -> str:
    """ "Vote 8 of 20": the vote at hand, also after it was given."""
    position = session.num_votes + (session.voter not in session.prompts[index].votes)
    skipped = sum(bool(prompt.skipped) for prompt in session.prompts)
    parts = [f"Vote {position}" + (f" of {session.planned}" if session.planned else "")]
    parts += [f"{skipped} skipped"] if skipped else []
    parts.append(
        "names are shown after the last vote" if session.planned
        else "names are shown when you end it"
    )  # fmt: skip
    return " · ".join(parts)


def _next_button(session: VoteSession, row: DeltaGenerator | None = None) -> None:
    if session.is_exhausted:
        if (row or st).button("Show the names", key="vote.names", type="primary"):
            run_action(lambda: _end(session.id))
    elif (row or st).button("Next", key="vote.next", type="primary", shortcut="Enter"):
        st.session_state[f"vote.at.{session.id}"] = session.next_prompt()
        st.rerun()


def _field(session: VoteSession, index: int | None) -> None:
    """The field of the next prompt, open once this one is voted on."""
    prompt = session.prompts[index] if index is not None else None
    waits = prompt is not None and not prompt.skipped and session.voter not in prompt.votes
    count = len(session.models)
    everybody = "both models" if count == 2 else f"all {NUMBERS[count]} models"
    written = st.chat_input(
        "Vote first" if waits else f"Message {everybody}", key="vote.prompt",
        max_chars=chat_view.MAX_QUESTION_CHARS, disabled=waits or session.is_complete,
    )  # fmt: skip
    if written:
        run_action(lambda: _add(session.id, written))


def _add(session_id: str, text: str) -> None:
    with votes.change(session_id) as session:
        session.add_prompt(text)


def _vote(session_id: str, index: int, vote: str) -> None:
    with votes.change(session_id) as session:
        session.vote(index, vote)
    st.session_state[f"vote.at.{session_id}"] = index


def _ask_again(session_id: str, index: int) -> None:
    with votes.change(session_id) as session:
        session.ask_again(index)
    st.session_state[f"vote.at.{session_id}"] = index


def _end(session_id: str) -> None:
    with votes.change(session_id) as session:
        session.end()
