"""Scores of answers, held against values worked out by hand or recomputed plainly."""

from __future__ import annotations

import random
import re

import numpy as np
import pytest

from lab.evals import scores


@pytest.mark.parametrize(
    ("answer", "reference", "exact", "f1"),
    [
        ("The Eiffel Tower!", "eiffel tower", 1.0, 1.0),
        ("in Paris, France", "Paris", 0.0, 2 * (1 / 3) * 1 / (1 / 3 + 1)),
        ("Paris Paris", "Paris", 0.0, 2 * 0.5 * 1 / 1.5),
        ("Rome", "Paris", 0.0, 0.0),
        ("", "Paris", 0.0, 0.0),
        ("the", "a", 1.0, 1.0),
    ],
)
def test_words_of_an_answer(answer: str, reference: str, exact: float, f1: float) -> None:
    assert scores.exact_match(answer, reference) == exact
    assert scores.token_f1(answer, reference) == pytest.approx(f1)


def test_accuracy_and_macro_f1_are_those_of_the_confusion_matrix() -> None:
    draw = random.Random(3)
    labels = ["refund", "delay", "damage", ""]
    right = [draw.choice(labels[:3]) for _ in range(200)]
    guesses = [label if draw.random() < 0.6 else draw.choice(labels) for label in right]
    matrix = np.zeros((4, 4))
    for true, guess in zip(right, guesses, strict=True):
        matrix[labels.index(true), labels.index(guess)] += 1
    hits, by_true, by_said = np.diag(matrix), matrix.sum(1), matrix.sum(0)
    precision = np.divide(hits, by_said, out=np.zeros(4), where=by_said > 0)
    recall = np.divide(hits, by_true, out=np.zeros(4), where=by_true > 0)
    both = precision + recall
    f1 = np.divide(2 * precision * recall, both, out=np.zeros(4), where=both > 0)
    assert scores.macro_f1(guesses, right) == pytest.approx(f1.mean(), abs=1e-12)
    assert scores.accuracy(guesses, right) == pytest.approx(hits.sum() / 200)
    assert scores.macro_f1(["a", "a"], ["a", "b"]) == pytest.approx((2 / 3 + 0) / 2)


def test_a_label_is_the_whole_answer_or_its_first_line() -> None:
    labels = ("refund_request", "bug_report")
    assert scores.closest_label("Refund_request.", labels) == "refund_request"
    assert scores.closest_label("bug_report\nbecause it crashes", labels) == "bug_report"
    assert scores.closest_label("It is a bug_report", labels) == ""
    assert scores.closest_label("", labels) == ""


def test_commands_are_the_same_words_to_a_shell() -> None:
    assert (
        scores.shell_match("grep -C 3 'password'  todo.txt", 'grep -C 3 "password" todo.txt') == 1
    )
    assert scores.shell_match("tar -czf a.tar.gz b", "tar -cf a.tar.gz b") == 0
    assert scores.shell_match("echo 'unclosed", "echo unclosed") == 0
    assert scores.shell_match("rm a b", "rm b a") == 0


def test_a_form_is_that_of_the_whole_answer() -> None:
    form = re.compile(r"\{.*\}", re.DOTALL)
    assert scores.complies(' {"a": 1}\n', form) == 1
    assert scores.complies('Sure: {"a": 1}', form) == 0
