"""The parts of Home: the journey in four steps, which the newest run fills, and the recent runs."""

from __future__ import annotations

from dataclasses import dataclass, replace

import streamlit as st

from lab import formatting, presets
from lab.errors import LabError, SpecError, refusal_of
from lab.runs import index
from lab.runs.index import RunSummary
from lab.runs.outcomes import Outcome, outcome
from lab.runs.run_progress import run_progress
from lab.ui import colours, end_card, links, run_state, submit, titles
from lab.ui.fragments import fragment
from lab.ui.markdown_safety import escape_lines, escape_markdown, tell
from lab.ui.runs_view import folder

MAX_ANSWER_CHARS = 160  # characters of an answer on a card
MAX_RECENT_RUNS = 5
STARTING, PROBLEM = "home.starting", "home.problem"


@dataclass(frozen=True)
class Newest:
    """The newest run that is not archived, with what there is to say of it."""

    entry: RunSummary
    outcome: Outcome

    @property
    def has_result(self) -> bool:
        return folder(self.entry).artifact.is_dir()

    @property
    def heading(self) -> str:
        name = self.entry.name or titles.method(self.entry.method_options)
        return f"{colours.dot(self.entry.colour)} {escape_markdown(name)}"


def newest() -> Newest | None:
    for entry in listed():
        return Newest(entry, outcome(folder(entry)))
    return None


def listed() -> list[RunSummary]:
    """Newest first, without the archived ones."""
    return [entry for entry in index.entries() if not entry.is_archived]


def losses(of_run: Outcome) -> str:
    """ "3.59 → 2.41"; empty where nothing was measured."""
    if of_run.loss is None:
        return ""
    if of_run.base_loss is None:
        return f"{of_run.loss:.2f}"
    return f"{of_run.base_loss:.2f} → {of_run.loss:.2f}"


def next_step(run: Newest | None) -> str:
    """train, watch or ask: the step whose button is the primary one."""
    if run is None:
        return "train"
    if not run.entry.status.has_ended:
        return "watch"
    return "ask" if run.has_result else "train"


def journey() -> None:
    """Four cards. Drawn again every two seconds while the newest run goes on."""
    run = newest()
    goes_on = run is not None and not run.entry.status.has_ended
    fragment(_cards, run_every=2.0 if goes_on else None)(goes_on)


def _cards(goes_on: bool) -> None:
    run = newest()
    if goes_on and (run is None or run.entry.status.has_ended):
        st.rerun()  # the page as it is at rest: nothing asks for it any more
    primary = next_step(run)
    grid = st.grid(4, min_column_width=230, gap="small", border=True)
    with grid.cell():
        _train(primary == "train")
    with grid.cell():
        _watch(run, primary == "watch")
    with grid.cell():
        _ask(run, primary == "ask")
    with grid.cell():
        _compare()


def _title(step: int, title: str, done: bool) -> None:
    st.markdown(f"**{step} {title}**{' :material/check:' if done else ''}")


def _button(label: str, key: str, is_primary: bool, icon: str) -> bool:
    kind = "primary" if is_primary else "secondary"
    return bool(st.button(label, key=key, icon=f":material/{icon}:", type=kind))


def _train(is_primary: bool) -> None:
    first = presets.get("first")
    _title(1, "Train", False)
    st.markdown(
        "Teach SmolLM2-135M a new identity: LoRA on a hundred short chats, sixty steps, a few "
        "minutes on two CPU cores."
    )
    starting = bool(st.session_state.get(STARTING))
    # one button: beside another one the old one would stay, and could be clicked
    st.button(
        "Starting …" if starting else "Start training", key="home.start",
        icon=":material/hourglass_top:" if starting else ":material/play_arrow:",
        type="primary" if is_primary else "secondary", disabled=starting,
        on_click=lambda: st.session_state.update({STARTING: True}),
    )  # fmt: skip
    if problem := st.session_state.pop(PROBLEM, None):
        tell(LabError(*problem))
    if starting:
        st.session_state[STARTING] = False
        try:
            links.open_run(submit.quick_start(first).id)
        except (LabError, OSError) as error:
            refusal = refusal_of(error)
            st.session_state[PROBLEM] = [str(refusal) if isinstance(refusal, SpecError)
                                         else refusal.message, refusal.hint]  # fmt: skip
            st.rerun()  # with the button as it was
    st.page_link(links.page("new_run"), label="Customise this run", icon=":material/tune:")


def _watch(run: Newest | None, is_primary: bool) -> None:
    _title(2, "Watch", run is not None and run.entry.status.state == "done")
    if run is None:
        st.caption("The loss as it falls, and answers of the model while it learns.")
        return
    run_status = run.entry.status
    st.markdown(run.heading)
    if run_status.is_active:
        progress = run_progress(folder(run.entry))
        st.progress(min(1.0, progress.fraction))
        left = f" · {formatting.duration(progress.left_s)} left" if progress.left_s else ""
        st.caption(escape_markdown(run_state.progress(replace(run_status, eta_s=None)) + left))
    else:
        st.caption(f"{run_state.icon(run_status.state)} {escape_markdown(run_status.state)}")
    if run_status.message:
        st.markdown(escape_lines(f"{run_status.message} {run_status.hint}".strip()))
    if losses(run.outcome):
        st.markdown(f"Evaluation loss **{losses(run.outcome)}**")
    if _button("Open Monitor", "home.watch", is_primary, "monitoring"):
        links.open_run(run.entry.id)


def _ask(run: Newest | None, is_primary: bool) -> None:
    _title(3, "Ask", False)
    answers = end_card.samples(folder(run.entry)) if run is not None else []
    if len(answers) < 2 or answers[0]["step"] != 0:
        st.caption("The same question to the base model and to yours, side by side.")
    else:
        st.caption(escape_markdown(_short(answers[-1].get("prompt", ""))))
        for name, answer in (("before", answers[0]), ("now", answers[-1])):
            text = _short(answer.get("text", "")) or "(empty answer)"
            st.markdown(f":gray[{name}] {escape_markdown(text)}")
    if run is not None and run.has_result:
        if _button("Chat", "home.ask", is_primary, "forum"):
            links.switch("chat", chat_query(run.entry))


def _short(text: object) -> str:
    line = " ".join(str(text).split())
    if len(line) <= MAX_ANSWER_CHARS:
        return line
    return f"{line[:MAX_ANSWER_CHARS].rsplit(None, 1)[0]} …"


def chat_query(entry: RunSummary) -> dict[str, str]:
    """The address of Chat with the run beside its base."""
    return {"models": f"base:{entry.model},run:{entry.id}"}


def comparable(entries: list[RunSummary]) -> tuple[RunSummary, RunSummary] | None:
    """The newest run with an evaluation, and the newest other one of the same model and data."""
    measured = [entry for entry in entries if outcome(folder(entry)).loss is not None]
    for other in measured[1:]:
        if (other.model, other.dataset) == (measured[0].model, measured[0].dataset):
            return measured[0], other
    return None


def _compare() -> None:
    pair = comparable(listed())
    _title(4, "Compare", False)
    if pair is None:
        st.markdown("LoRA against full fine-tuning: the same data, order, steps and seed.")
        st.page_link(
            links.page("new_run"), label="Set up both", icon=":material/compare_arrows:",
            query_params={"preset": presets.PAIRS[0].name},
        )  # fmt: skip
        return
    for entry in pair:
        run = Newest(entry, outcome(folder(entry)))
        method = escape_markdown(titles.method(entry.method_options))
        st.markdown(f"{run.heading} · {method} · {losses(run.outcome)}")
    if _button("Compare the curves", "home.pair", False, "compare_arrows"):
        links.open_comparison([entry.id for entry in pair])


def recent() -> None:
    """The newest runs in one line each: what they are, what they gained, and where they lead."""
    entries = listed()[:MAX_RECENT_RUNS]
    if not entries:
        st.info("No runs yet. Start the first one above.", icon=":material/info:")
        return
    for entry in entries:
        run = Newest(entry, outcome(folder(entry)))
        facts = [
            titles.method(entry.method_options),
            entry.status.state,
            losses(run.outcome),
            formatting.when(entry.created),
        ]
        with st.container(border=True, horizontal=True, vertical_alignment="center", gap="small"):
            line = " · ".join(escape_markdown(fact) for fact in facts if fact)
            st.markdown(f"{run.heading} · {line}", width="stretch")
            if run.has_result:
                st.page_link(
                    links.page("chat"), label="Chat", icon=":material/forum:",
                    query_params=chat_query(entry), width="content",
                )  # fmt: skip
            st.page_link(
                links.page("monitor"), label="Monitor", icon=":material/monitoring:",
                query_params={"run": entry.id}, width="content",
            )  # fmt: skip
    st.page_link(links.page("runs"), label="All runs", icon=":material/table_rows:")
