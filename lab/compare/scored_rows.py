"""Stored scores of compared runs and their base on the same questions, and on which rows two of
them differ.

Whether one gets more rows right than another is told by McNemar's test (1947, Psychometrika 12) in
its exact form: a sign test on the rows that only one of them gets right. Of macro-F1, which is no
mean over rows, a randomisation test on the rows tells it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lab.chat import models as chat_models
from lab.chat.models import ModelRef
from lab.compare.contestants import Contestant, Names
from lab.compare.preference import LEVEL, sign_test
from lab.compare.randomisation_test import macro_f1_test
from lab.errors import LabError
from lab.evals import score, score_sheets
from lab.evals.score import TITLES
from lab.evals.score_sheets import ScoredAnswer, ScoredModel, ScoreSheet
from lab.evals.scores import macro_f1
from lab.formatting import quantity
from lab.paths import RunDir

# figures that are no mean over rows, and the labels that they are made of
LABELS_OF: dict[str, Callable[[ScoredAnswer], str]] = {
    "macro_f1": lambda answer: answer.label,
    "likely_macro_f1": lambda answer: answer.likeliest,
}


@dataclass(frozen=True)
class ScoredSet:
    """One set. `models`: those that have answers, the base first; `missing`: runs without."""

    sheet: ScoreSheet
    models: tuple[str, ...]
    missing: tuple[str, ...]

    def model(self, name: str) -> ScoredModel:
        return self.sheet.models[name]

    @property
    def figures(self) -> list[str]:
        """What was measured of them, as TITLES orders it."""
        return [key for key in TITLES if any(key in self.model(m).figures for m in self.models)]


@dataclass(frozen=True)
class RowDifference:
    """Places of the questions that only one of two models gets right; `p` of the exact test."""

    first: str
    second: str
    only_first: tuple[int, ...]
    only_second: tuple[int, ...]
    both: int
    neither: int
    p: float

    @property
    def is_shown(self) -> bool:
        return self.p < LEVEL

    def in_words(self, first: str, second: str) -> str:
        """`first` and `second`: how the two are called."""
        rows = self.both + self.neither + len(self.only_first) + len(self.only_second)
        apart = len(self.only_first) + len(self.only_second)
        if not apart:
            return (
                f"{first} and {second} get the same {self.both} of {quantity(rows, 'row')} right."
            )
        differing = f"{quantity(apart, 'row')} that differ{'s' if apart == 1 else ''}"
        verdict = "a difference is shown" if self.is_shown else "no difference is shown"
        return (
            f"{first} gets {quantity(len(self.only_first), 'row')} right that {second} does not; "
            f"the other way round {len(self.only_second)}. Both are right on {self.both} of "
            f"{rows}, neither on {self.neither}. Exact McNemar test on the {differing}: "
            f"{p_in_words(self.p)}, {verdict}."
        )


def p_in_words(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def run_refs(contestants: Sequence[Contestant]) -> list[ModelRef]:
    """The runs that have a result, each after the base that it is asked beside."""
    names = []
    for contestant in contestants:
        for run in contestant.runs:
            with contextlib.suppress(LabError):  # it has no result yet, or its base is gone
                names.append(chat_models.parse(f"run:{run.id}"))
    if not names:
        return []
    base = chat_models.parse(f"base:{names[0].base}")
    return chat_models.with_shared_template([base, *names])


def runs_of(contestants: Sequence[Contestant]) -> list[RunDir]:
    """Those that can be scored."""
    return [named.run for named in run_refs(contestants) if named.run is not None]


def scored_sets(contestants: Sequence[Contestant]) -> list[ScoredSet]:
    """The sets on which one of the runs has been scored, the newest first; of one set that was
    asked in several ways that with the most of them."""
    names = run_refs(contestants)
    known: dict[str, ScoredSet] = {}
    for sheet in score_sheets.all_sheets():
        has = [each for each in names if score_sheets.answers_of(sheet, each) is not None]
        if not any(each.run is not None for each in has):
            continue
        candidate = ScoredSet(
            sheet,
            tuple(each.name for each in has),
            tuple(each.name for each in names if each not in has),
        )
        before = known.pop(sheet.dataset, None)
        is_poorer = before is not None and len(before.models) > len(candidate.models)
        known[sheet.dataset] = before if is_poorer and before is not None else candidate
    return list(known.values())[::-1]


def difference(scored: ScoredSet, first: str, second: str) -> RowDifference:
    """On which rows two of its models differ."""
    sheet = scored.sheet
    mine, theirs = (
        [sheet.is_right(name, index) for index in range(len(sheet.questions))]
        for name in (first, second)
    )
    only_first, only_second = score.only_right(mine, theirs)
    return RowDifference(
        first, second, tuple(only_first), tuple(only_second),
        both=sum(map(min, mine, theirs)),
        neither=len(mine) - sum(map(max, mine, theirs)),
        p=sign_test(len(only_first), len(only_second)),
    )  # fmt: skip


def best_of(scored: ScoredSet, key: str) -> str:
    """The model with the highest figure, where a test on the rows shows it above every other;
    "" else."""
    values = {
        name: scored.model(name).figures[key]
        for name in scored.models
        if key in scored.model(name).figures
    }
    if len(values) < 2:
        return ""
    best = max(values, key=lambda name: values[name])
    is_above = _has_higher_f1 if key in LABELS_OF else _is_higher_by_row
    shown = all(is_above(scored, best, other, key) for other in values if other != best)
    return best if shown else ""


def _is_higher_by_row(scored: ScoredSet, first: str, second: str, key: str) -> bool:
    """By the exact sign test on the rows."""
    pairs = [
        (ours.figures.get(key, 0.0), theirs.figures.get(key, 0.0))
        for ours, theirs in zip(
            scored.model(first).answers, scored.model(second).answers, strict=True
        )
    ]
    higher, lower = sum(a > b for a, b in pairs), sum(a < b for a, b in pairs)
    return higher > lower and sign_test(higher, lower) < LEVEL


def _has_higher_f1(scored: ScoredSet, first: str, second: str, key: str) -> bool:
    """By the randomisation test. False where the labels are not those of the figures: answers that
    were stored before labels were do not tell them."""
    right = [question.reference for question in scored.sheet.questions]
    labels = []
    for model in map(scored.model, (first, second)):
        labels.append([LABELS_OF[key](answer) for answer in model.answers])
        if abs(macro_f1(labels[-1], right) - model.figures[key]) > 1e-9:
            return False
    return macro_f1_test(labels[0], labels[1], right) < LEVEL


def extremes(scored: ScoredSet, name: str, count: int = 3) -> tuple[list[int], list[int]]:
    """(places of the questions that the model answers best, those that it answers worst)."""
    figures = [answer.figures for answer in scored.model(name).answers]
    return score.extremes(figures, scored.sheet.main, count)


def answer_text(answer: ScoredAnswer) -> str:
    """What was written, or the choice that was found likeliest."""
    return answer.text or answer.likeliest


def name_of(name: str, contestants: Sequence[Contestant], names: Names) -> str:
    """How a model of a sheet is called: as its contestant, with the seed where that has several;
    the base model else."""
    for contestant in contestants:
        for run in contestant.runs:
            if name == f"run:{run.id}":
                seed = f", seed {run.seed}" if len(contestant.runs) > 1 else ""
                return f"{names(contestant)}{seed}"
    return "base model"


def differences(scored: ScoredSet) -> list[RowDifference]:
    """Of every two of its models."""
    return [
        difference(scored, first, second)
        for index, first in enumerate(scored.models)
        for second in scored.models[index + 1 :]
    ]


def as_json(scored: ScoredSet) -> dict[str, Any]:
    """A set with figures, answers and the differences of every two, as JSON values."""
    return {
        "set": scored.sheet.dataset,
        "kind": scored.sheet.kind,
        "main": scored.sheet.main,
        "rows": [asdict(question) for question in scored.sheet.questions],
        "models": [{"model": name, **asdict(scored.model(name))} for name in scored.models],
        "missing": list(scored.missing),
        "best": {key: best_of(scored, key) or None for key in scored.figures},
        "differences": [asdict(pair) for pair in differences(scored)],
    }
