"""Multiple choice by likelihood: what a choice's score is, and what the accuracy is centred by."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lab.train import choice_probe
from lab.train.choice_probe import Question
from tests.methods import tiny

PROMPT = "w1 w2 w3"
CHOICES = ("w4", "w5 w6 w7", "w8 w9")


def test_a_choice_is_as_likely_as_its_tokens_behind_the_prompt(small_tokenizer: Any) -> None:
    """Each alone, without padding and without dropout, which the model has while it trains."""
    model = tiny.make_model("gpt2").train()
    model.transformer.drop.p = 0.5
    measured = choice_probe.continuation_log_probabilities(model, small_tokenizer, PROMPT, CHOICES)
    assert model.training, "the model is put back into its mode"
    expected = []
    for choice in CHOICES:
        before, behind = (small_tokenizer(text)["input_ids"] for text in (PROMPT, choice))
        with torch.no_grad():
            logits = model.eval()(torch.tensor([before + behind])).logits[0]
        log = torch.log_softmax(logits, dim=-1)[len(before) - 1 : -1]
        expected.append(float(sum(log[place, token] for place, token in enumerate(behind))))
    assert measured == pytest.approx(expected, rel=1e-4)


def test_a_score_is_the_log_probability_for_each_character(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        choice_probe, "continuation_log_probabilities", lambda *_: [-4.0, -6.0, -1.0]
    )
    scores = choice_probe.choice_scores(None, None, "", Question("?", ("ab", "abcdef", ""), 1))
    assert scores == [-2.0, -1.0, -1.0], "a long choice is not punished for its length"


def test_the_likeliest_choice_is_the_answer_and_chance_is_zero(
    small_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two questions the first is right: half of them, where guessing has three of eight."""
    three = [
        Question("w1", ("a", "b"), 1), Question("w2", ("a", "b", "c", "d"), 0),
        Question("w3", ("a", "b"), 0),
    ]  # fmt: skip
    signs: list[int] = []
    prompts: list[str] = []

    def scores(model: Any, tokenizer: Any, prompt: str, question: Question) -> list[float]:
        prompts.append(prompt)
        return [-3.0, -1.0, -2.0, -2.0][: len(question.choices)]

    monkeypatch.setattr(choice_probe, "questions", lambda: three)
    monkeypatch.setattr(choice_probe, "choice_scores", scores)
    measured = choice_probe.centred_accuracy(None, small_tokenizer, lambda: signs.append(1), most=2)
    assert measured == pytest.approx((1 / 2 - 3 / 8) / (1 - 3 / 8))
    assert len(signs) == 2, "a sign of life after each question"
    assert [prompt.split() for prompt in prompts] == [
        [tiny.TURN, word, tiny.END, tiny.TURN] for word in ("w1", "w2")
    ], "the answer begins behind the prompt"
    assert choice_probe.centred([True, True], [2, 4]) == 1.0
    assert choice_probe.centred([False, False], [2, 2]) == -1.0, "worse than chance"


def test_every_question_has_its_right_choice_among_them() -> None:
    everything = choice_probe.questions()
    assert len(everything) >= choice_probe.LIVE_QUESTIONS
    for question in everything:
        assert 0 <= question.right < len(set(question.choices)) == len(question.choices)
    assert len({question.right for question in everything}) > 1, "not always the same place"
