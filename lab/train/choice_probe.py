"""Multiple choice by likelihood: which of the choices the model finds likeliest as its answer.

A choice's score is the sum of the log-probabilities of its tokens behind the question, over its
number of characters (acc_norm of the lm-evaluation-harness), so that long choices are not punished.
Accuracy is shown centred: 0 is chance, 1 is all right (DCLM, arXiv:2406.11794, section 3.5).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from lab.data import chat_template
from lab.models.weights import evaluating
from lab.paths import ASSETS

QUESTIONS = ASSETS / "datasets" / "common-knowledge.jsonl"
LIVE_QUESTIONS = 15  # of them that are asked at each evaluation


@dataclass(frozen=True)
class Question:
    text: str
    choices: tuple[str, ...]
    right: int


@cache
def questions() -> tuple[Question, ...]:
    rows = [json.loads(line) for line in QUESTIONS.read_text(encoding="utf-8").splitlines()]
    return tuple(Question(row["question"], tuple(row["choices"]), row["answer"]) for row in rows)


def centred(right: Sequence[bool], choices: Sequence[int]) -> float:
    """(accuracy − chance) / (1 − chance), where chance is the mean of 1 / choices."""
    accuracy = sum(right) / len(right)
    chance = sum(1 / count for count in choices) / len(choices)
    return (accuracy - chance) / (1 - chance)


def centred_accuracy(
    model: Any,
    tokenizer: Any,
    after_question: Callable[[], object] = lambda: None,
    most: int = LIVE_QUESTIONS,
) -> float:
    """Over the first `most` questions of common knowledge."""
    asked_questions = questions()[:most]
    right = []
    for question in asked_questions:
        scores = choice_scores(model, tokenizer, prompt_of(tokenizer, question.text), question)
        right.append(max(range(len(scores)), key=lambda index: scores[index]) == question.right)
        after_question()
    return centred(right, [len(question.choices) for question in asked_questions])


def prompt_of(tokenizer: Any, text: str, system: str = "") -> str:
    messages = chat_template.with_system(({"role": "user", "content": text},), system)
    return chat_template.render(tokenizer, messages, to_answer=True)


def choice_scores(model: Any, tokenizer: Any, prompt: str, question: Question) -> list[float]:
    """The score of each choice behind `prompt`: log-probability over characters."""
    sums = continuation_log_probabilities(model, tokenizer, prompt, question.choices)
    lengths = [max(1, len(choice)) for choice in question.choices]
    return [total / length for total, length in zip(sums, lengths, strict=True)]


def continuation_log_probabilities(
    model: Any, tokenizer: Any, prompt: str, continuations: Sequence[str]
) -> list[float]:
    """The summed log-probability in nats of each continuation of `prompt`, in one forward pass.

    Prompt and continuation are made tokens apart, as generation joins them. Padding stands at the
    right, where causal attention never looks.
    """
    import torch

    before = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    behind = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in continuations]
    width = max(map(len, behind))
    pad = tokenizer.pad_token_id
    device = next(model.parameters()).device
    ids = torch.tensor(
        [[*before, *tokens, *[pad] * (width - len(tokens))] for tokens in behind], device=device
    )
    with evaluating(model), torch.inference_mode():
        logits = model(input_ids=ids, use_cache=False).logits[:, -ids.shape[1] :]
    start = len(before) - 1
    log = torch.log_softmax(logits[:, start : start + width].float(), dim=-1)
    totals = []
    for row, tokens in enumerate(behind):
        targets = torch.tensor(tokens, device=device)
        picked = log[row, : len(tokens)].gather(1, targets[:, None])
        totals.append(float(picked.double().sum()))
    return totals
