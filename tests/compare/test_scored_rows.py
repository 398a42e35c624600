"""Which rows one of two models gets right and the other does not, and how sure that is."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from lab.atomic_files import write_json
from lab.compare import randomisation_test, scored_rows
from lab.compare.comparison import compare
from lab.compare.contestants import contestants
from lab.compare.scored_rows import ScoredSet, difference, scored_sets
from lab.evals.score import TITLES
from lab.evals.score_sheets import ScoredAnswer, ScoredModel, ScoredQuestion, ScoreSheet
from lab.evals.scores import macro_f1
from lab.runs import actions
from lab.ui import compare_export
from tests.compare.recorded import record, score_run

#          0     1      2      3     4     5     6     7      8     9
FIRST = [True, True, True, True, True, True, True, False, True, True]
SECOND = [True, False, False, False, False, False, False, True, False, False]
BASE = [False] * 10


def test_rows_that_only_one_gets_and_the_exact_test_in_words() -> None:
    first, second = record("aaaa", "A"), record("bbbb", "B", "full")
    score_run(first, FIRST, BASE)
    score_run(second, SECOND)
    (scored,) = scored_sets(contestants([first, second]))
    names = [f"run:{run.id}" for run in (first, second)]
    assert scored.models == (f"base:{_model(scored)}", *names), "the base comes first"
    apart = difference(scored, *names)
    assert apart.only_first == (1, 2, 3, 4, 5, 6, 8, 9) and apart.only_second == (7,)
    assert (apart.both, apart.neither) == (1, 0)
    assert apart.p == 2 * (9 + 1) / 2**9, "twice the tail of a fair coin"
    assert apart.in_words("A", "B") == (
        "A gets 8 rows right that B does not; the other way round 1. Both are right on 1 of 10, "
        "neither on 0. Exact McNemar test on the 9 rows that differ: p = 0.039, a difference is "
        "shown."
    )
    turned = difference(scored, *names[::-1])
    assert (turned.only_first, turned.only_second) == (apart.only_second, apart.only_first)
    single = replace(apart, only_first=(1,), only_second=(), p=1.0).in_words("A", "B")
    assert "A gets 1 row right" in single and "on the 1 row that differs: p = 1.000, no" in single
    same = difference(scored, names[0], names[0])
    assert same.in_words("A", "A") == "A and A get the same 9 of 10 rows right." and same.p == 1.0


def _model(scored: scored_rows.ScoredSet) -> str:
    return scored.models[0].removeprefix("base:")


def test_the_best_is_marked_only_where_the_test_shows_it() -> None:
    first, second = record("aaaa", "A"), record("bbbb", "B", "full")
    score_run(first, FIRST, BASE)
    score_run(second, SECOND)
    (scored,) = scored_sets(contestants([first, second]))
    assert scored_rows.best_of(scored, "exact_match") == f"run:{first.id}"
    assert scored_rows.best_of(scored, "token_f1") == f"run:{first.id}"
    assert scored_rows.best_of(scored, "macro_f1") == "", "no model has it"
    score_run(second, [*FIRST[:-1], False])
    (scored,) = scored_sets(contestants([first, second]))
    assert scored_rows.best_of(scored, "exact_match") == "", "one row more shows nothing"
    assert scored.model(f"run:{second.id}").figures["exact_match"] == pytest.approx(0.8)


def scored_labels(right: list[str], *models: list[str]) -> ScoredSet:
    """As many models, which wrote these labels and found them the likeliest."""
    questions = tuple(ScoredQuestion(n, f"q{n}", label) for n, label in enumerate(right))
    by_name = {}
    for number, labels in enumerate(models):
        answers = tuple(
            ScoredAnswer(f" {label}!", label, label, {"accuracy": float(label == true)})
            for label, true in zip(labels, right, strict=True)
        )
        f1 = macro_f1(labels, right)
        figures = {"macro_f1": f1, "likely_macro_f1": f1}
        by_name[f"run:{number}"] = ScoredModel(figures, answers)
    sheet = ScoreSheet("a set", "labels", "accuracy", questions, by_name)
    return ScoredSet(sheet, tuple(by_name), ())


@pytest.mark.parametrize("given", ["abab", "aaaa", "cabb", "bbaa"])
def test_the_macro_f1_that_is_drawn_is_that_of_the_scores(given: str) -> None:
    """Labels that only the other model gave do not count."""
    mine, right = (randomisation_test._one_hot(row, list("abcd")) for row in (given, "abba"))
    (drawn,) = randomisation_test._macro_f1(
        mine.sum(0)[None], (mine * right).sum(0)[None], right.sum(0)
    )
    assert drawn == pytest.approx(macro_f1(given, "abba"))


@pytest.mark.parametrize("key", ["macro_f1", "likely_macro_f1"])
def test_the_highest_macro_f1_is_marked_where_swapping_answers_shows_it(key: str) -> None:
    """Three labels, one of them rare: B gets the rare one wrong each time."""
    right = ["late", "broken"] * 12 + ["praise"] * 6
    blind = ["late", "broken"] * 12 + ["late"] * 6
    one_wrong = ["late", "broken"] * 12 + ["late"] + ["praise"] * 5
    scored = scored_labels(right, blind, right)
    assert scored_rows.best_of(scored, key) == "run:1", "the highest, not the first"
    assert scored_rows.best_of(scored_labels(right, right, one_wrong), key) == "", "one row of 30"
    assert scored_rows.best_of(scored_labels(right, right, right), key) == ""
    third = scored_labels(right, blind, right, one_wrong)
    assert scored_rows.best_of(third, key) == "", "it is not above the third"
    first = scored.model("run:0")
    unlabelled = tuple(replace(each, label="", likeliest="") for each in first.answers)
    before = scored.sheet.models | {"run:0": replace(first, answers=unlabelled)}
    stored = replace(scored, sheet=replace(scored.sheet, models=before))
    assert scored_rows.best_of(stored, key) == "", "stored without labels: nothing is known"


def test_every_score_can_be_marked_as_the_best() -> None:
    """Whatever figure a set has: one model is right on all rows, the other on none."""
    right = [f"label {n % 2}" for n in range(12)]
    scored = scored_labels(right, right, [f"label {(n + 1) % 2}" for n in range(12)])
    for key in TITLES:
        models = {
            name: replace(
                model,
                figures=model.figures
                | ({} if "f1" in key and "token" not in key else {key: value}),
                answers=tuple(replace(a, figures={key: value}) for a in model.answers),
            )
            for (name, model), value in zip(scored.sheet.models.items(), (1.0, 0.0), strict=True)
        }
        changed = replace(scored, sheet=replace(scored.sheet, models=models))
        assert scored_rows.best_of(changed, key) == "run:0", key


def test_answers_of_other_weights_and_of_deleted_runs_do_not_count() -> None:
    first, second = record("aaaa", "A"), record("bbbb", "B", "full")
    score_run(first, FIRST, BASE)
    score_run(second, SECOND)
    write_json(second.artifact / "receipt.json", {"weights": "written anew"})
    (scored,) = scored_sets(contestants([first, second]))
    assert scored.missing == (f"run:{second.id}",), "it was trained on since it was scored"
    actions.delete(first)
    sheet = score_run(second, SECOND)
    assert f"run:{first.id}" not in sheet.models, "what a deleted run had said goes"
    assert f"run:{second.id}" in sheet.models


def test_of_one_set_the_scores_of_most_models_are_shown_and_of_as_many_the_newest() -> None:
    first, second = record("aaaa", "A"), record("bbbb", "B", "full")
    both = contestants([first, second])
    score_run(first, FIRST, BASE)
    score_run(second, SECOND)
    score_run(first, FIRST[:4], BASE[:4])
    (scored,) = scored_sets(both)
    assert len(scored.sheet.questions) == 10 and len(scored.models) == 3, "the later has two"
    score_run(second, SECOND[:4])
    (scored,) = scored_sets(both)
    assert len(scored.sheet.questions) == 4 and len(scored.models) == 3


def test_the_base_under_another_template_is_asked_again() -> None:
    run = record("aaaa", "A")
    score_run(run, FIRST, BASE)
    write_json(run.artifact / "receipt.json", {"lock": {"hash": "of another template"}})
    score_run(run, FIRST)
    (scored,) = scored_sets(contestants([run]))
    assert scored.models == (f"run:{run.id}",), "what the base said under the old one is no match"


def test_the_best_and_the_worst_answers_of_a_model() -> None:
    run = record("aaaa", "A")
    score_run(run, SECOND, BASE)
    (scored,) = scored_sets(contestants([run]))
    best, worst = scored_rows.extremes(scored, f"run:{run.id}")
    assert best[:2] == [0, 7] and set(worst) <= {1, 2, 3, 4, 5, 6, 8, 9}
    assert len(best) == len(worst) == 3
    page = compare_export.html_report(contestants([run]))
    assert "A gets 2 rows right that base model does not; the other way round 0." in page
    assert "<td>A</td><td>best</td><td>question 0</td><td>answer 0</td><td>answer 0</td>" in page
    assert "<td>A</td><td>worst</td><td>question 9</td><td>answer 9</td><td>wrong 9</td>" in page


def test_json_and_report_hold_the_scores_and_no_markup_of_names() -> None:
    first, second = record("aaaa", "<b>A"), record("bbbb", "B", "full")
    assert compare([first, second]).scores == ()
    score_run(first, FIRST, BASE)
    score_run(second, SECOND)
    (scores,) = json.loads(json.dumps(compare([first, second]).to_json()["scores"]))
    assert scores["set"] == "builtin:text-to-shell" and scores["main"] == "exact_match"
    assert [each["figures"]["exact_match"] for each in scores["models"]] == [0.0, 0.9, 0.2]
    assert scores["best"]["exact_match"] == f"run:{first.id}"
    assert [len(each["only_first"]) for each in scores["differences"]] == [0, 0, 8]
    assert scores["models"][1]["answers"][7]["text"] == "wrong 7"
    page = compare_export.html_report(contestants([first, second]))
    assert "Scores on builtin:text-to-shell" in page and "exact match ↑" in page
    assert "Only B is right: 1" in page and "<b>A" not in page
    assert "&lt;b&gt;A gets 8 rows right that B does not" in page
    row = "<td>question 7</td><td>answer 7</td><td>wrong 7</td><td>answer 7</td>"
    assert row in page, "prompt, reference and both answers stand beside each other"
