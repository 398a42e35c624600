"""Scores of answers against references: plain functions over text, without a model.

Exact match and token F1 normalise as SQuAD does (Rajpurkar et al. 2016, arXiv:1606.05250): lower
case, no punctuation, no articles, single spaces.
"""

from __future__ import annotations

import collections
import re
import shlex
import string
from collections.abc import Sequence

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)
MAX_ANSWER_CHARS = 20_000  # characters of an answer that a pattern looks at


def normalised(text: str) -> str:
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def exact_match(answer: str, reference: str) -> float:
    """1 or 0."""
    return float(normalised(answer) == normalised(reference))


def token_f1(answer: str, reference: str) -> float:
    """Harmonic mean of precision and recall over the words that both have."""
    words, right = normalised(answer).split(), normalised(reference).split()
    if not words or not right:
        return float(words == right)
    common = sum((collections.Counter(words) & collections.Counter(right)).values())
    if not common:
        return 0.0
    precision, recall = common / len(words), common / len(right)
    return 2 * precision * recall / (precision + recall)


def accuracy(predicted: Sequence[str], right: Sequence[str]) -> float:
    return sum(guess == true for guess, true in zip(predicted, right, strict=True)) / len(right)


def macro_f1(predicted: Sequence[str], right: Sequence[str]) -> float:
    """The mean of the F1 of every label that occurs on either side; a label that was never
    predicted, or never right, has 0 (as scikit-learn's average="macro", zero_division=0)."""
    pairs = list(zip(predicted, right, strict=True))
    labels = sorted({*predicted, *right})
    scores = []
    for label in labels:
        hits = sum(guess == label == true for guess, true in pairs)
        guessed = sum(guess == label for guess, _ in pairs)
        true_count = sum(true == label for _, true in pairs)
        scores.append(2 * hits / (guessed + true_count))
    return sum(scores) / len(scores)


def closest_label(answer: str, labels: Sequence[str]) -> str:
    """The label that an answer gives: the whole answer, or its first line; else ""."""
    first_line = answer.strip().partition("\n")[0]
    by_text = {normalised(label): label for label in labels}
    return by_text.get(normalised(answer)) or by_text.get(normalised(first_line)) or ""


def shell_match(answer: str, reference: str) -> float:
    """Whether both are the same words to a shell: quotes and spaces may differ, order may not. An
    answer that no shell reads is wrong."""
    try:
        return float(shlex.split(answer.strip()) == shlex.split(reference.strip()))
    except ValueError:
        return 0.0


def complies(answer: str, pattern: re.Pattern[str]) -> float:
    """Whether the whole answer, without spaces around it, has the form of the pattern."""
    return float(pattern.fullmatch(answer.strip()[:MAX_ANSWER_CHARS]) is not None)
