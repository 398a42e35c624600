"""Everything about one answer, in a dialog: its text, its receipt, its tokens, and what can be made
of it."""

from __future__ import annotations

import html
import math

import streamlit as st

from lab.chat import client, conversations, examples
from lab.chat.answers import AnswerReceipt
from lab.chat.conversations import Answer, Chat
from lab.errors import LabError
from lab.formatting import quantity
from lab.ui import cards, chat_panes
from lab.ui.markdown_safety import run_action, user_errors
from lab.visible import visible

SURPRISES = ((0.5, "likely"), (0.1, "less likely"), (0.01, "unlikely"), (0.0, "a surprise"))
TINTS = (0, 22, 44, 66)  # per cent of the warning colour for each of SURPRISES


@st.dialog("Answer", width="large")
def show(conversation_id: str, turn_index: int, name: str) -> None:
    """Open the dialog."""
    chat = client.view(conversation_id)
    answer = chat.turns[turn_index].answers[name]
    st.markdown(chat_panes.pane(name).label)
    text, receipt, tokens, example, more = st.tabs(
        ["Text", "Receipt", "Tokens", "Keep as an example", "Continue from here"]
    )
    with text:
        st.code(visible(answer.text), language=None, wrap_lines=True)
    with receipt:
        _receipt(chat, turn_index, name, answer)
    with tokens:
        _tokens(chat, turn_index, name, answer)
    with example:
        _example(chat, turn_index, name, answer)
    with more:
        _go_on(chat, turn_index, name)


def _receipt(chat: Chat, turn_index: int, name: str, answer: Answer) -> None:
    if not answer.receipt:
        st.caption("There is no receipt: the answer did not begin.")
        return
    known = AnswerReceipt.from_json(answer.receipt)
    for line in chat_panes.proof_lines(known):
        st.markdown(line)
    st.caption("The prompt as it was read")
    st.code(visible(known.prompt), language=None, wrap_lines=True)
    rest = dict(answer.receipt)
    rest.pop("prompt", None)  # it stands above
    cards.json_code(rest)
    st.download_button(
        "Download the receipt", examples.receipt_file(chat, turn_index, name),
        file_name=f"receipt-{chat.id}-{turn_index + 1}.json", mime="application/json",
        icon=":material/download:", key=f"details.receipt.{turn_index}.{name}",
    )  # fmt: skip
    st.code("python -m lab chat --receipt FILE", language=None, wrap_lines=True)
    st.caption("Gives the same tokens again, or says what has changed.")


def _tokens(chat: Chat, turn_index: int, name: str, answer: Answer) -> None:
    """Each token on a tint that says how surprised a model was, and the answer under each model."""
    if not answer.log_probabilities:
        st.caption("No tokens.")
        return
    scores = {name: answer.log_probabilities, **answer.scores}
    scored = scores
    if len(chat.turns[turn_index].answers) > 1 and not answer.scores:
        st.caption("How likely is this answer under the other models of this question?")
        if st.button(
            "Measure it under every model", icon=":material/monitoring:",
            key=f"details.score.{turn_index}.{name}",
        ):  # fmt: skip
            with user_errors(), st.spinner("Reading the answer with each model …"):
                scored = {name: answer.log_probabilities, **client.score(chat.id, turn_index, name)}
    if len(scored) > 1:
        st.table(score_rows(scored, name), border="horizontal", hide_index=True)
    chosen = name
    if len(scored) > 1:
        chosen = st.pills(
            "Surprise of", list(scored), default=name, key=f"details.under.{turn_index}.{name}",
            format_func=lambda model: chat_panes.pane(model).heading, required=True,
        )  # fmt: skip
    st.html(token_html(answer, scored[chosen or name]))
    total, perplexity = _sums(scored[chosen or name])
    st.caption(
        f"{quantity(len(answer.log_probabilities), 'token')}, log-probability {total:.1f}, "
        f"perplexity {perplexity:.2f}. Hover over a token for its probability."
    )


def _sums(log_probabilities: list[float]) -> tuple[float, float]:
    """(their sum, the perplexity)."""
    total = sum(log_probabilities)
    return total, math.exp(min(700.0, -total / max(1, len(log_probabilities))))


def score_rows(scores: dict[str, list[float]], writer: str) -> list[dict[str, str]]:
    """A row for each model, the likeliest first; Markdown."""
    rows = []
    for model in sorted(scores, key=lambda model: -sum(scores[model])):
        total, perplexity = _sums(scores[model])
        wrote = " (wrote it)" if model == writer else ""
        rows.append(
            {
                "Under": chat_panes.pane(model).heading + wrote,
                "Log-probability": f"{total:.2f}",
                "Perplexity": f"{perplexity:.2f}",
            }
        )
    return rows


def token_html(answer: Answer, log_probabilities: list[float]) -> str:
    """HTML of the tokens; everything that a model wrote is escaped."""
    spans = []
    for piece, log_probability in zip(answer.pieces, log_probabilities, strict=False):
        probability = math.exp(log_probability)
        tint = next(t for (low, _), t in zip(SURPRISES, TINTS, strict=True) if probability >= low)
        shown = html.escape(visible(piece)).replace("\n", "⏎<br>") or "·"
        spans.append(
            f'<span title="{probability:.1%}" style="background:'
            f'color-mix(in srgb, #ee8444 {tint}%, transparent);white-space:pre-wrap">{shown}</span>'
        )
    legend = " ".join(
        f'<span style="background:color-mix(in srgb, #ee8444 {tint}%, transparent);padding:0 .4em">'
        f"{word}</span>"
        for (_, word), tint in zip(SURPRISES, TINTS, strict=True)
    )
    return f'<p style="line-height:1.9">{"".join(spans)}</p><p>{legend}</p>'


def _example(chat: Chat, turn_index: int, name: str, answer: Answer) -> None:
    """Correct the answer and keep it as a row of a dataset."""
    st.caption("Adds the conversation up to this answer as a row to one of your datasets.")
    text = st.text_area("Answer", answer.text, height=160, key=f"details.text.{turn_index}.{name}")
    st.session_state.setdefault("chat.dataset", examples.DEFAULT_NAME)
    dataset = st.text_input(
        "Dataset", st.session_state["chat.dataset"], key=f"details.dataset.{turn_index}.{name}",
        help="An uploaded dataset; it is created if it does not exist.",
    )  # fmt: skip
    if st.button("Add the row", icon=":material/add:", key=f"details.add.{turn_index}.{name}"):
        try:
            rows = examples.add_chat(dataset, chat, turn_index, name, text)
        except (LabError, OSError) as error:
            st.error(visible(str(error)))
        else:
            st.success(f"{dataset} has {quantity(rows, 'row')}. Open it on the Data page.")


def _go_on(chat: Chat, turn_index: int, name: str) -> None:
    last = turn_index == len(chat.turns) - 1
    if last and len(chat.turns[turn_index].answers) > 1:
        st.caption("All models continue as if each had given this answer.")
        if st.button("Continue all from this answer", key=f"details.all.{turn_index}.{name}"):
            run_action(lambda: conversations.continue_from(chat.id, turn_index, name))
    st.caption("A new chat with the turns up to here; this one does not change.")
    if st.button("Branch from here", key=f"details.branch.{turn_index}.{name}"):
        branch = conversations.branch(chat.id, turn_index + 1)
        st.session_state["chat.open"] = branch.id
        st.rerun()
    st.caption("A new chat in which you change this turn's question.")
    question = st.text_area(
        "Question", chat.turns[turn_index].question, key=f"details.edit.{turn_index}.{name}"
    )
    if st.button("Ask this instead", key=f"details.ask.{turn_index}.{name}"):
        branch = conversations.branch(chat.id, turn_index)
        st.session_state["chat.open"] = branch.id
        st.session_state["chat.next"] = question
        st.rerun()
