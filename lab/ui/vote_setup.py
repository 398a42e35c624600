"""Begin a blind vote, go on with one, or look at an outcome."""

from __future__ import annotations

from typing import Any

import streamlit as st

from lab.chat.conversations import MAX_MODELS
from lab.compare import preference, prompt_sets, votes
from lab.compare.vote_sentences import sentences
from lab.compare.votes import VoteSession
from lab.data import catalog
from lab.formatting import quantity
from lab.ui import chat_panes, chat_settings
from lab.ui.markdown_safety import escape_markdown, plain, run_action

MAX_SHOWN = 10  # earlier votes
WITHOUT_PLAN = 100  # prompts of a set where no number of votes is planned


def open_vote(session_id: str) -> None:
    st.session_state["vote.id"] = session_id
    st.query_params["vote"] = session_id


def show(names: list[str], titles: dict[str, str], settings: dict[str, Any]) -> None:
    """The form, and the votes on this machine."""
    st.caption(
        "Vote on answers without knowing whose they are. The order is shuffled for each prompt; "
        "names appear after the last vote."
    )
    options = list(dict.fromkeys([*names, *titles]))
    with st.container(border=True):
        models = st.multiselect(
            "Models", options, names[:MAX_MODELS], key="vote.models",
            max_selections=MAX_MODELS, format_func=lambda name: str(plain(title(name, titles))),
            help="Two to four. The base, or the first, is what the others are compared with.",
        )  # fmt: skip
        sets = sources(options, titles)
        left, right = st.columns(2)
        source = left.selectbox(
            "Prompts", list(sets), key="vote.source", format_func=lambda key: str(plain(sets[key])),
            help="Prompts that a model was not trained on say more.",
        )  # fmt: skip
        fixed = left.toggle("Fix the number of votes now", True, key="vote.fixed", help=FIXED)
        planned = right.number_input(
            "Number of votes", 1, votes.MAX_PROMPTS, 20, key="vote.planned", disabled=not fixed
        )
        voter = right.text_input("Voter", "me", key="vote.voter", max_chars=votes.MAX_VOTER_CHARS)
        seed = left.number_input("Seed of the order", 0, 2**31 - 1, 0, key="vote.seed")
        if st.button("Start the vote", type="primary", key="vote.start", disabled=len(models) < 2):
            run_action(
                lambda: begin(
                    models, titles, settings, source=source, planned=planned if fixed else None,
                    seed=seed, voter=voter,
                )
            )  # fmt: skip
        if len(models) < 2:
            st.caption("Choose two models or more. A run's result appears here when it ends.")
        st.caption(chat_settings.summary(settings))
    earlier = votes.all_sessions()
    if earlier:
        st.subheader("Votes on this machine", anchor=False)
    for session in earlier[:MAX_SHOWN]:
        _row(session)


FIXED = (
    "Stopping when the result looks good finds preferences that do not exist: the test holds "
    "only for a number of votes that was fixed before."
)


def title(name: str, titles: dict[str, str]) -> str:
    """A model as a list shows it, a checkpoint with its step."""
    model, _, step = name.partition("@")
    return titles.get(model, model) + (f", step {step}" if step else "")


def sources(names: list[str], titles: dict[str, str]) -> dict[str, str]:
    """Where prompts come from: what `prompt_sets` takes → what it is called. "" is typed."""
    sets = {"": "I type them"}
    for name in names:
        if name.startswith("run:") and "@" not in name:
            run_id = name.removeprefix("run:")
            sets[f"{prompt_sets.HELD_OUT}{run_id}"] = f"Held-out rows of {title(name, titles)}"
    for dataset in catalog.built_in():
        name = str(dataset.card.get("title", dataset.id))
        if dataset.card.get("try"):
            sets[f"{prompt_sets.TRY}{dataset.id}"] = f"{name}: prompts to try"
        if dataset.card.get("format") != "text":
            sets[dataset.id] = f"{name}: rows"
        if dataset.card.get("held_out"):
            sets[f"{dataset.id}@held-out"] = f"{name}: held-out rows"
    sets |= {dataset.id: f"Upload {dataset.path.name}" for dataset in catalog.uploads()}
    return sets


def begin(
    models: list[str], titles: dict[str, str], settings: dict[str, Any], *, source: str,
    planned: int | None, seed: int, voter: str,
) -> None:  # fmt: skip
    """Create the vote and open it. Of a set twice as many prompts are drawn as votes are planned,
    for those that are skipped. Raises LabError."""
    texts: list[str] = []
    if source:
        most = 2 * planned if planned else WITHOUT_PLAN
        texts = prompt_sets.prompts(source, min(most, votes.MAX_PROMPTS), seed)
        planned = min(planned, len(texts)) if planned else None
    session = votes.create(
        models, planned=planned, seed=seed, voter=voter, source=source, prompts=texts,
        titles={name: title(name, titles) for name in models}, settings=settings,
    )  # fmt: skip
    open_vote(session.id)


def _row(session: VoteSession) -> None:
    row = st.container(
        horizontal=True, horizontal_alignment="distribute", vertical_alignment="center"
    )
    names = " and ".join(chat_panes.pane(name).heading for name in session.models)
    row.markdown(f"{names}  \n:gray[{state(session)}]", width="stretch")
    if row.button("Open" if session.is_over else "Continue", key=f"vote.open.{session.id}"):
        open_vote(session.id)
        st.rerun()
    if row.button(
        ":material/delete:", key=f"vote.delete.{session.id}", type="tertiary",
        help="Delete this vote",
    ):  # fmt: skip
        run_action(lambda: votes.delete(session.id))


def state(session: VoteSession) -> str:
    """One line of Markdown: the verdict, or how far it is. Who leads is not told before the end."""
    if not session.is_over:
        votes = quantity(session.planned or session.num_votes, "vote")
        of = f"{session.num_votes} of " if session.planned else ""
        return f"{of}{votes}, in progress"
    result = preference.outcome(session)
    return escape_markdown(sentences(result, lambda name: result.titles[name])[0])
