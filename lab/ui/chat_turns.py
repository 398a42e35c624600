"""The turns of a chat: a question over the whole width, and below it the answers side by side."""

from __future__ import annotations

import difflib
import re
import time

import streamlit as st

from lab import formatting
from lab.chat import client
from lab.chat.answers import AnswerReceipt
from lab.chat.conversations import Answer, Chat, Turn
from lab.chat.side_by_side import prompt_warning
from lab.ui import answer_details, chat_panes
from lab.ui.fragments import fragment
from lab.ui.markdown_safety import escape_lines, escape_markdown, plain, run_action
from lab.ui.safe_markdown import safe_markdown

THOUGHT = re.compile(r"\s*<think(?:ing)?>(.*?)(?:</think(?:ing)?>|$)(.*)", re.DOTALL)
PANE_WIDTH = 250  # px, below which panes wrap
ENDS = {
    "length": "reached max new tokens",
    "context": "reached the end of the context",
    "stopped": "stopped",
    "failed": "failed",
    "interrupted": "interrupted: the chat process ended",
}
LOOK_S = 0.3
LONG_QUESTION = 1500  # characters


def turns(chat: Chat) -> None:
    """All turns; while the last one is answered, it is drawn again and again."""
    if not chat.turns:
        return
    last = len(chat.turns) - 1
    for turn_index in range(last):
        _turn(chat, turn_index)
    if chat.turns[last].is_over:
        _turn(chat, last)
        return

    @fragment(run_every=LOOK_S)
    def look() -> None:
        current = client.view(chat.id)
        if len(current.turns) != last + 1 or current.turns[last].is_over:
            st.rerun()
        _turn(current, last)

    look()


def _turn(chat: Chat, turn_index: int) -> None:
    turn = chat.turns[turn_index]
    with st.container(horizontal=True, horizontal_alignment="right"):
        with st.container(key=f"ask-{turn_index}", width="content"):
            _question(turn.question)
    grid = st.grid(len(turn.answers), min_column_width=PANE_WIDTH, border=True)
    for name in turn.answers:
        with grid.cell():
            _answer(chat, turn_index, name)
    if turn_index == len(chat.turns) - 1 and len(turn.answers) > 1 and turn.is_over:
        with st.container(horizontal=True, horizontal_alignment="right"):
            if st.button(
                "Answer all again", icon=":material/refresh:", key=f"chat.all_again.{turn_index}",
                type="tertiary",
            ):  # fmt: skip
                run_action(lambda: client.answer_again(chat.id))
    warning = prompt_warning(
        {
            chat_panes.pane(name).title: AnswerReceipt.from_json(answer.receipt)
            for name, answer in turn.answers.items()
        }
    )
    if warning:
        st.caption(f":material/warning: {escape_markdown(warning)}")
    if turn.continue_from:
        st.caption(f"↳ all continue from {chat_panes.pane(turn.continue_from).heading}")


def _question(text: str) -> None:
    """A long one by its beginning, and the whole of it on request."""
    if len(text) <= LONG_QUESTION:
        st.markdown(escape_lines(text))
        return
    st.markdown(f"{escape_lines(text[:LONG_QUESTION])} …")
    with st.expander(f"All {formatting.quantity(len(text), 'character')}", type="compact"):
        st.code(str(plain(text)), language=None, wrap_lines=True, height=300)


def _answer(chat: Chat, turn_index: int, name: str) -> None:
    turn = chat.turns[turn_index]
    answer = turn.answers[name]
    st.markdown(chat_panes.pane(name).heading)
    receipt = AnswerReceipt.from_json(answer.receipt)
    for problem in receipt.proof.problems if receipt.proof else ():
        st.markdown(f":red[:material/warning: {escape_markdown(problem)}]")
    if receipt.warning:
        st.caption(f":material/warning: {escape_markdown(receipt.warning)}")
    _text(turn, name)
    if answer.finish == "failed":
        st.markdown(f":red[{escape_markdown(answer.error)}]")
        if answer.hint:
            st.caption(escape_markdown(answer.hint))
    row = st.container(
        horizontal=True, horizontal_alignment="distribute", vertical_alignment="center"
    )
    row.caption(foot(answer), width="stretch")
    buttons = row.container(horizontal=True, width="content", gap="xxsmall")
    key = f"{turn_index}.{name}"
    if not answer.is_over:
        if buttons.button(
            ":material/stop_circle:",
            key=f"chat.stop.{key}",
            help="Stop this answer",
            type="tertiary",
        ):
            client.stop(chat.id, [name])
        return
    is_gone = answer.finish == "interrupted"
    if turn_index == len(chat.turns) - 1 and buttons.button(
        "Start again" if is_gone else ":material/refresh:", key=f"chat.again.{key}",
        help="Answer again", type="secondary" if is_gone else "tertiary",
        disabled=not turn.is_over,
    ):  # fmt: skip
        run_action(lambda: client.answer_again(chat.id, [name]))
    if turn.is_over and buttons.button(
        ":material/more_horiz:", key=f"chat.more.{key}", type="tertiary",
        help="Copy, receipt, tokens, keep as an example, continue from here",
    ):  # fmt: skip
        answer_details.show(chat.id, turn_index, name)


def _text(turn: Turn, name: str) -> None:
    """The answer, its thoughts folded; differences to the first pane marked where asked for."""
    answer = turn.answers[name]
    text = answer.text
    thought = THOUGHT.fullmatch(text)
    if thought:
        with st.expander("Thoughts", type="compact"):
            st.markdown(safe_markdown(thought[1].strip()))
        text = thought[2].strip()
    first = next(iter(turn.answers))
    if st.session_state.get("chat.differences") and turn.is_over and name != first:
        st.markdown(marked(turn.answers[first].text, text) or "–")
    elif text:
        st.markdown(safe_markdown(text))
    elif answer.is_over and answer.finish != "failed":
        st.caption("The answer is empty.")


def marked(reference: str, text: str) -> str:
    """Markdown of `text` in which words that are not in `reference` at their place are marked."""
    old, new = reference.split(), text.split()
    parts: list[str] = []
    for kind, _, _, start, end in difflib.SequenceMatcher(a=old, b=new).get_opcodes():
        words = escape_markdown(" ".join(new[start:end]))
        if words:
            parts.append(words if kind == "equal" else f":primary-background[{words}]")
    return " ".join(parts)


def foot(answer: Answer) -> str:
    """One line of Markdown: what the model is doing, or what the answer took."""
    if not answer.is_over:
        if not answer.tokens:
            since = f" {time.time() - answer.started:.0f} s" if answer.started else ""
            return f"{escape_markdown(answer.phase)} …{since}"
        return f"answering · {formatting.quantity(answer.tokens, 'token')}{_rate(answer)}"
    parts = []
    if answer.tokens:
        parts.append(f"{formatting.quantity(answer.tokens, 'token')}{_rate(answer)}")
    if answer.seconds_to_first_token is not None:
        parts.append(f"first after {_short(answer.seconds_to_first_token)}")
    if answer.finish in ENDS:
        parts.append(ENDS[answer.finish])
    return " · ".join(parts) or "no tokens"


def _short(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 10 else formatting.duration(seconds)


def _rate(answer: Answer) -> str:
    """Tokens a second after the first one, as a person watches them come."""
    if answer.tokens < 2 or answer.seconds is None or answer.seconds_to_first_token is None:
        return ""
    seconds = answer.seconds - answer.seconds_to_first_token
    return f" · {(answer.tokens - 1) / seconds:.0f}/s" if seconds > 0 else ""
