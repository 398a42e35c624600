"""Whether one of two models has the higher macro-F1: a randomisation test on the rows.

Macro-F1 is no mean over rows, so that no sign test speaks for it. If it made no difference which of
the two models answered, their answers to a row could be swapped: p is how often swapping at random
leaves the two figures as far apart as they are (Noreen 1989, Computer-Intensive Methods for Testing
Hypotheses; Yeh 2000, arXiv:cs/0008005).

Legend: D draws, N rows, L labels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

DRAWS = 5000
SEED = 21


def macro_f1_test(first: Sequence[str], second: Sequence[str], right: Sequence[str]) -> float:
    """p, two-sided, of the labels that two models gave to the same rows. Always the same draws."""
    labels = sorted({*first, *second, *right})
    first_NL, second_NL, right_NL = (_one_hot(row, labels) for row in (first, second, right))
    swap_DN = np.random.default_rng(SEED).integers(2, size=(DRAWS, len(right))).astype(float)
    swap_DN[0] = 0.0  # as they are
    true_L = right_NL.sum(0)
    given_DL = swap_DN @ (second_NL - first_NL)
    hits_DL = swap_DN @ ((second_NL - first_NL) * right_NL)
    ours = _macro_f1(first_NL.sum(0) + given_DL, (first_NL * right_NL).sum(0) + hits_DL, true_L)
    theirs = _macro_f1(second_NL.sum(0) - given_DL, (second_NL * right_NL).sum(0) - hits_DL, true_L)
    apart_D = np.abs(ours - theirs)
    return float((apart_D >= apart_D[0] - 1e-12).mean())


def _one_hot(row: Sequence[str], labels: list[str]) -> np.ndarray:
    """(N, L) of 0 and 1."""
    index_of = {label: index for index, label in enumerate(labels)}
    return np.eye(len(labels))[[index_of[label] for label in row]]


def _macro_f1(given_DL: np.ndarray, hits_DL: np.ndarray, true_L: np.ndarray) -> np.ndarray:
    """(D,) means over the labels that occur on either side, as `scores.macro_f1`."""
    both_DL = given_DL + true_L
    return np.asarray((2 * hits_DL / np.maximum(both_DL, 1)).sum(1) / (both_DL > 0).sum(1))
