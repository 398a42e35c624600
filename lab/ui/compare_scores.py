"""The Scores tab of Compare: how well the runs and their base answer a set, and which rows one gets
right and another does not."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from lab.compare import scored_rows
from lab.compare.contestants import Contestant
from lab.compare.scored_rows import RowDifference, ScoredSet
from lab.evals import score_job
from lab.evals.score import TITLES
from lab.formatting import duration, quantity
from lab.paths import RunDir
from lab.ui import colours, titles
from lab.ui.compare_runs import name_of, plain_name
from lab.ui.fragments import fragment
from lab.ui.markdown_safety import escape_lines, escape_markdown, plain, run_action

LOOK_S = 1.0
MAX_CELL_CHARS = 160  # characters of a text in a table
BEST = ":material/check_circle:"


def show(shown: list[Contestant]) -> None:
    """Sets that were scored, and what can be scored."""
    scored = scored_rows.scored_sets(shown)
    if scored:
        sets = [titles.dataset(each.sheet.dataset) for each in scored]
        position = st.selectbox(
            "Set", range(len(scored)), key="compare.scores.set", width=320,
            format_func=lambda index: str(plain(sets[index])),
        )  # fmt: skip
        _scores(scored[position], shown)
    else:
        st.markdown(
            "None of these runs has been scored. The runs and their base answer the questions of a "
            "dataset, and each answer is compared with the reference: exact match, token F1, "
            "accuracy, format, or the most likely choice, depending on the dataset."
        )
    _measure(shown, scored)


def _measure(shown: list[Contestant], scored: list[ScoredSet]) -> None:
    """The button, and how far the work is."""
    runs = scored_rows.runs_of(shown)
    if not runs:
        st.caption("A run can be scored once it has a result.")
        return
    job = score_job.record(runs)
    if job is not None and job.is_active:
        _wait(runs)
        return
    if job is not None and job.finish == "failed":
        st.error(escape_markdown(f"{job.error} {job.hint}".strip()), icon=":material/error:")
    elif job is not None and job.finish == "interrupted":
        st.caption(
            ":material/warning: The last scoring was stopped. The answers of the models that had "
            "finished are saved."
        )
    whole = {each.sheet.dataset for each in scored if not each.missing}
    sets = [name for name in score_job.fitting_sets(runs) if name not in whole]
    if not sets:
        return
    with st.container(horizontal=True, vertical_alignment="bottom"):
        chosen = st.selectbox(
            "Score on", sets, key="compare.scores.on", width=320,
            format_func=lambda name: str(plain(titles.dataset(name))),
            help="The held-out rows of the runs' data, and questions of common knowledge.",
        )  # fmt: skip
        if st.button("Score these runs", icon=":material/checklist:", key="compare.scores.start"):
            run_action(lambda: score_job.start(runs, chosen))


@fragment(run_every=LOOK_S)
def _wait(runs: list[RunDir]) -> None:
    job = score_job.record(runs)
    if job is None or not job.is_active:
        st.rerun()
        return
    with st.container(horizontal=True, vertical_alignment="center"):
        dataset = titles.dataset(str(job.request.get("dataset", "")))
        text = escape_markdown(f"{dataset}: {job.phase} · {duration(job.seconds)} so far")
        st.markdown(f":material/progress_activity: {text}", width="content")
        if st.button("Stop", icon=":material/stop_circle:", key="compare.scores.stop"):
            run_action(lambda: score_job.stop(runs))


def _scores(scored: ScoredSet, shown: list[Contestant]) -> None:
    sheet = scored.sheet
    st.caption(
        f"{quantity(len(sheet.questions), 'question')}, answered greedily; none of the runs was "
        "trained on it. All figures: ↑ higher is better; 1 is all correct."
        if sheet.main != "centred_accuracy"
        else f"{quantity(len(sheet.questions), 'multiple-choice question')}; 0 is chance, 1 "
        "is all correct. ↑"
    )
    table: dict[str, list[str]] = {"": [_heading(name, shown) for name in scored.models]}
    for key in scored.figures:
        best = scored_rows.best_of(scored, key)
        table[f"{TITLES[key][0].upper()}{TITLES[key][1:]} ↑"] = [
            _cell(scored.model(name).figures.get(key), name == best) for name in scored.models
        ]
    st.table(pd.DataFrame(table), border="horizontal", hide_index=True)
    if len(scored.models) > 1:
        st.caption("The best is marked where a test on the rows shows it above all others.")
        _differences(scored, shown)
    _extremes(scored, shown)


def _heading(name: str, shown: list[Contestant]) -> str:
    if not name.startswith("run:"):
        return f"{colours.BASE_DOT} base model"
    return scored_rows.name_of(name, shown, name_of)


def _cell(value: float | None, is_best: bool) -> str:
    if value is None:
        return "–"
    text = f"{value:.3f}".replace("-", "−")
    return f"**{text}** {BEST}" if is_best else text


def _differences(scored: ScoredSet, shown: list[Contestant]) -> None:
    """Which rows A gets right and B does not, both ways."""
    st.markdown("#### Which rows only one of two gets right")
    with st.container(horizontal=True, vertical_alignment="bottom"):
        first = min(1, len(scored.models) - 2)  # the base stands at 0
        pair = [
            st.selectbox(
                label, scored.models, index=index, key=f"compare.scores.{label.lower()}",
                format_func=lambda name: scored_rows.name_of(name, shown, plain_name), width=240,
            )
            for label, index in (("A", first), ("B", first + 1))
        ]  # fmt: skip
    if pair[0] == pair[1]:
        st.caption("Choose two different models.")
        return
    apart = scored_rows.difference(scored, *pair)
    headings = [_heading(name, shown) for name in pair]
    st.markdown(apart.in_words(*headings))
    names = [scored_rows.name_of(name, shown, plain_name) for name in pair]
    for title, indices in (
        (f"Only {names[0]} is right: {len(apart.only_first)}", apart.only_first),
        (f"Only {names[1]} is right: {len(apart.only_second)}", apart.only_second),
    ):
        if not indices:
            continue
        st.markdown(f"**{escape_markdown(title)}**")
        st.dataframe(
            pd.DataFrame(difference_rows(scored, apart, indices, names)), hide_index=True,
            key=f"compare.scores.rows.{title[:5]}.{indices[0]}.{len(indices)}", row_height=66,
            alt=title,
        )  # fmt: skip


def difference_rows(
    scored: ScoredSet, apart: RowDifference, indices: tuple[int, ...], names: list[str]
) -> list[dict[str, str]]:
    """{Prompt, Reference, and what each of the two said} of these questions."""
    answers = [scored.model(name).answers for name in (apart.first, apart.second)]
    columns = [f"A: {names[0]}", f"B: {names[1]}"]
    return [
        {
            "Prompt": _short(scored.sheet.questions[index].prompt),
            "Reference": _short(scored.sheet.questions[index].reference),
            **{
                title: _short(scored_rows.answer_text(each[index]))
                for title, each in zip(columns, answers, strict=True)
            },
        }
        for index in indices
    ]


def _short(text: str) -> str:
    line = " ".join(str(plain(text)).split())
    return line if len(line) <= MAX_CELL_CHARS else f"{line[:MAX_CELL_CHARS]} …"


def _extremes(scored: ScoredSet, shown: list[Contestant]) -> None:
    """The best and the worst answers of one model, whole."""
    st.markdown("#### Best and worst answers")
    name = st.selectbox(
        "Answers of", scored.models, index=len(scored.models) - 1, key="compare.scores.of",
        format_func=lambda model: scored_rows.name_of(model, shown, plain_name), width=240,
    )  # fmt: skip
    grid = st.grid(2, min_column_width=380, gap="small", border=True)
    for title, indices in zip(("BEST", "WORST"), scored_rows.extremes(scored, name), strict=True):
        with grid.cell():
            st.caption(title)
            for index in indices:
                question, answer = scored.sheet.questions[index], scored.model(name).answers[index]
                st.markdown(f":material/chat: {escape_lines(question.prompt)}")
                figures = " · ".join(
                    f"{TITLES[key]} {value:.2f}" for key, value in answer.figures.items()
                )
                st.markdown(escape_lines(scored_rows.answer_text(answer)) or "*(empty answer)*")
                st.caption(f"Reference: {escape_markdown(question.reference)}  \n{figures}")
