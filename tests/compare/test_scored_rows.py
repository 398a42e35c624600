"""Which rows one of two models gets right and the other does not, and how sure that is."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from lab.atomic_files import write_json
from lab.compare import scored_rows
from lab.compare.comparison import compare
from lab.compare.contestants import contestants
from lab.compare.scored_rows import difference, scored_sets
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
    assert scored_rows.best_of(scored, "macro_f1") == "", "it is no mean over rows"
    score_run(second, [*FIRST[:-1], False])
    (scored,) = scored_sets(contestants([first, second]))
    assert scored_rows.best_of(scored, "exact_match") == "", "one row more shows nothing"
    assert scored.model(f"run:{second.id}").figures["exact_match"] == pytest.approx(0.8)


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


def test_json_and_report_hold_the_scores_and_no_markup_of_names() -> None:
    first, second = record("aaaa", "<b>A"), record("bbbb", "B", "full")
    assert compare([first, second])["scores"] == []
    score_run(first, FIRST, BASE)
    score_run(second, SECOND)
    (scores,) = json.loads(json.dumps(compare([first, second])["scores"]))
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
