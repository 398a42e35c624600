"""Each figure of the probe stands under its own name, for the base and for the model."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lab.train import behaviour, choice_probe, forgetting, forgetting_probe
from lab.train.behaviour import GreedyAnswer
from lab.train.forgetting import Likelihood
from lab.train.forgetting_probe import ForgettingProbe
from tests.conftest import write_rows

BASE, TUNED = (SimpleNamespace(name=name, device=torch.device("cpu")) for name in ("base", "tuned"))
LOG_PROBS = {  # of chats of two, one and two tokens
    "base": torch.tensor([-1.0, -1.0, -2.0, -3.0, -1.0]),
    "tuned": torch.tensor([-1.1, -1.3, -4.0, -3.0, -1.4]),
}
CHOICES = {"base": 0.5, "tuned": 0.25}
ENDED = {"base": True, "tuned": False}
LENGTH = 77


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What the parts of the probe are asked for; they answer from the tables above."""
    calls: list[tuple[Any, ...]] = []

    def note(*call: Any) -> None:
        calls.append((*call, torch.is_autocast_enabled("cpu")))

    def likelihood(
        model: Any, tokenizer: Any, file: Path, top_ids: Any, sign: Any, length: int, most: Any
    ) -> Likelihood:
        note("likelihood", model.name, None if top_ids is None else len(top_ids), most, length)
        top = torch.full((5, 2), 0.5).log()
        whole = Likelihood(LOG_PROBS[model.name], top, torch.zeros(5, 2), (2, 1, 2))
        return whole.first(most) if most else whole

    def accuracy(model: Any, tokenizer: Any, sign: Any) -> float:
        note("choices", model.name)
        return CHOICES[model.name]

    def answers(
        model: Any, tokenizer: Any, prompts: Any, tokens: int, length: int, sign: Any
    ) -> list[GreedyAnswer]:
        note("answers", model.name, tokens, length)
        used = 7 if ENDED[model.name] else tokens
        return [GreedyAnswer(f"now {text}", used, ENDED[model.name]) for text in prompts]

    monkeypatch.setattr(forgetting, "likelihood", likelihood)
    monkeypatch.setattr(choice_probe, "centred_accuracy", accuracy)
    monkeypatch.setattr(behaviour, "greedy_answers", answers)
    monkeypatch.setattr(forgetting_probe, "LIVE_CHATS", 2)
    monkeypatch.setattr(forgetting_probe, "LOST", 2)
    return calls


@pytest.fixture
def answers_file(tmp_path: Path) -> Path:
    file = tmp_path / "answers.jsonl"
    turns = [(("user", f"prompt {n}"), ("assistant", f"before {n}")) for n in range(3)]
    write_rows(
        file, [{"messages": [{"role": r, "content": text} for r, text in row]} for row in turns]
    )
    return file


@pytest.mark.parametrize("precision", ["float32", "mixed"])
def test_what_the_base_could_and_what_the_model_can_are_told_apart(
    answers_file: Path, calls: list[tuple[Any, ...]], precision: str
) -> None:
    probe = ForgettingProbe(None, answers_file, LENGTH, precision)
    probe.measure_base(BASE)
    live = probe.measure_live(TUNED)
    end, lost = probe.measure_end(TUNED)
    for figures in (live, end):
        assert (figures["probe/choices"], figures["probe/base_choices"]) == (0.25, 0.5)
        assert (figures["probe/ended"], figures["probe/base_ended"]) == (0.0, 1.0)
        assert figures["probe/answer_tokens"] == behaviour.MAX_NEW_TOKENS
        assert figures["probe/base_answer_tokens"] == 7.0
        assert figures["probe/seconds"] >= 0.0
    assert (live["probe/chats"], end["probe/chats"]) == (2, 3), (
        "a part while it trains, all at last"
    )
    assert live["probe/rise"] == pytest.approx(2.4 / 3) and end["probe/rise"] == pytest.approx(0.56)
    assert lost == [
        {"prompt": "prompt 1", "before": "before 1", "now": "now prompt 1", "rise": 2.0},
        {"prompt": "prompt 0", "before": "before 0", "now": "now prompt 0",
         "rise": pytest.approx(0.2)},
    ], "the largest rise first"  # fmt: skip
    is_narrow = precision == "mixed"
    assert [call[1:] for call in calls if call[0] == "likelihood"] == [
        ("base", None, None, LENGTH, is_narrow),
        ("tuned", 3, 2, LENGTH, is_narrow),
        ("tuned", 5, None, LENGTH, is_narrow),
    ], "the model is read at the base's own tokens, in the precision of the run"
    limits = [call[2] for call in calls if call[0] == "answers"]
    few, many = forgetting_probe.LOST_TOKENS, behaviour.MAX_NEW_TOKENS
    assert limits == [many, many, many, few], "the base, the model, and what it answers now"
