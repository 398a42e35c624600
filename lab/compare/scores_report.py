"""Scores in the exported report: figures of every set, and the rows that only one of two gets."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from lab.compare import scored_rows
from lab.compare.contestants import Contestant, Names
from lab.compare.html_table import table, text_of
from lab.compare.scored_rows import ScoredSet
from lab.evals.score import TITLES
from lab.formatting import quantity

MAX_ROWS = 20  # of each difference
MAX_TEXT_CHARS = 500  # characters of a prompt or an answer


def sections(contestants: Sequence[Contestant], names: Names) -> list[str]:
    """HTML; nothing where no run was scored."""
    parts = []
    for scored in scored_rows.scored_sets(contestants):
        questions = len(scored.sheet.questions)
        parts.append(f"<h2>Scores on {text_of(scored.sheet.dataset)}</h2>")
        parts.append(f"<p class='terms'>{quantity(questions, 'question')}. Higher is better; "
        "the best is "
                     "marked where a test on the rows shows it.</p>")  # fmt: skip
        parts.append(_figures(scored, contestants, names))
        for first, second in _pairs(scored):
            parts += _difference(scored, first, second, contestants, names)
        parts += ["<p><b>Best and worst answers</b></p>", _extremes(scored, contestants, names)]
    return parts


def _pairs(scored: ScoredSet) -> list[tuple[str, str]]:
    """Every run against the next one; a single run against the base."""
    runs = [name for name in scored.models if name.startswith("run:")]
    if len(runs) < 2:
        return [(runs[0], base) for base in scored.models if base not in runs]
    return list(itertools.pairwise(runs))


def _figures(scored: ScoredSet, contestants: Sequence[Contestant], names: Names) -> str:
    head = ["", *(f"{TITLES[key]} ↑" for key in scored.figures)]
    best = {key: scored_rows.best_of(scored, key) for key in scored.figures}
    rows = []
    for name in scored.models:
        values = scored.model(name).figures
        cells = [
            ("–" if key not in values else f"{values[key]:.3f}", best[key] == name)
            for key in scored.figures
        ]
        rows.append([(scored_rows.name_of(name, contestants, names), False), *cells])
    return table(head, rows)


def _difference(
    scored: ScoredSet, first: str, second: str, contestants: Sequence[Contestant], names: Names
) -> list[str]:
    apart = scored_rows.difference(scored, first, second)
    titles = [scored_rows.name_of(name, contestants, names) for name in (first, second)]
    parts = [f"<p>{text_of(apart.in_words(*titles))}</p>"]
    for title, indices in zip(titles, (apart.only_first, apart.only_second), strict=True):
        if not indices:
            continue
        rows = [
            [
                *_question(scored, index),
                *(_answer(scored, name, index) for name in (first, second)),
            ]
            for index in indices[:MAX_ROWS]
        ]
        shown = f", the first {MAX_ROWS}" if len(indices) > MAX_ROWS else ""
        parts.append(f"<p><b>Only {text_of(title)} is right: {len(indices)}{shown}</b></p>")
        parts.append(table(["Prompt", "Reference", *titles], rows))
    return parts


def _question(scored: ScoredSet, index: int) -> list[tuple[str, bool]]:
    question = scored.sheet.questions[index]
    return [(text[:MAX_TEXT_CHARS], False) for text in (question.prompt, question.reference)]


def _answer(scored: ScoredSet, name: str, index: int) -> tuple[str, bool]:
    return scored_rows.answer_text(scored.model(name).answers[index])[:MAX_TEXT_CHARS], False


def _extremes(scored: ScoredSet, contestants: Sequence[Contestant], names: Names) -> str:
    rows = []
    for name in scored.models:
        title = scored_rows.name_of(name, contestants, names)
        for word, indices in zip(
            ("best", "worst"), scored_rows.extremes(scored, name), strict=True
        ):
            rows += [
                [(title, False), (word, False), *_question(scored, index),
                 _answer(scored, name, index)]
                for index in indices
            ]  # fmt: skip
    return table(["Model", "", "Prompt", "Reference", "Answer"], rows)
