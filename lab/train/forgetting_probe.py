"""The forgetting probe of a run: what it measures of the base once, of the model at each
evaluation, and at the end.

While the run trains, the first LIVE_CHATS of the base's answers, a few multiple-choice questions
and the answers to a few prompts are measured; at the end all of the base's answers are, with the
prompts whose answers became least likely and what the model says to them now. Nothing draws a
random number, so training goes on as it would have. How long it takes stands in each record.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lab.train import behaviour, choice_probe, forgetting
from lab.train.behaviour import GreedyAnswer
from lab.train.forgetting import Likelihood
from lab.train.step import autocast, uncompiled

LIVE_CHATS = 20
LOST = 6  # examples of what was lost
LOST_TOKENS = 48  # of an answer to one of them


class ForgettingProbe:
    """`sign` is called after each batch: the worker lives."""

    def __init__(
        self,
        tokenizer: Any,
        answers: Path,
        length: int | None,
        precision: str,
        sign: Callable[[], object] = lambda: None,
    ) -> None:
        self.tokenizer, self.answers, self.length = tokenizer, answers, length
        self.precision, self.sign = precision, sign
        self.base: Likelihood | None = None
        self.base_choices: float | None = None
        self.base_behaviour: tuple[float, float] | None = None

    def measure_base(self, model: Any) -> None:
        """What everything is held against; before anything touches the base."""
        self.base = self._likelihood(model)
        self.base_choices = self._choices(model)
        self.base_behaviour = self._behaviour(model)

    def measure_live(self, model: Any) -> dict[str, float]:
        """The figures of a `probe` record on a part of the answers and questions."""
        assert self.base is not None
        began = time.monotonic()
        base = self.base.first(LIVE_CHATS)
        tuned = self._likelihood(model, base.top_ids, LIVE_CHATS)
        figures = forgetting.compare(base, tuned) | self._other_figures(model)
        return figures | {"probe/seconds": time.monotonic() - began}

    def measure_end(self, model: Any) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """(the figures on all answers, examples of what was lost: {"prompt", "before", "now",
        "rise"}, the largest rise first)."""
        assert self.base is not None
        began = time.monotonic()
        tuned = self._likelihood(model, self.base.top_ids)
        figures = forgetting.compare(self.base, tuned) | self._other_figures(model)
        chats = [json.loads(line)["messages"] for line in self.answers.read_text().splitlines()]
        most = [
            (chats[index][0]["content"], chats[index][-1]["content"], rise)
            for index, rise in forgetting.most_lost(self.base, tuned, LOST)
            if index < len(chats)
        ]
        now = self._answers(model, [prompt for prompt, _, _ in most], LOST_TOKENS) if most else []
        lost = [
            {"prompt": prompt, "before": before, "now": answer.text, "rise": rise}
            for (prompt, before, rise), answer in zip(most, now, strict=True)
        ]
        return figures | {"probe/seconds": time.monotonic() - began}, lost

    def _likelihood(self, model: Any, top_ids: Any = None, most: int | None = None) -> Likelihood:
        with uncompiled(), autocast(model.device, self.precision):
            return forgetting.likelihood(
                model, self.tokenizer, self.answers, top_ids, self.sign, self.length, most
            )

    def _choices(self, model: Any) -> float:
        with uncompiled(), autocast(model.device, self.precision):
            return choice_probe.centred_accuracy(model, self.tokenizer, self.sign)

    def _behaviour(self, model: Any) -> tuple[float, float]:
        return behaviour.figures(self._answers(model, behaviour.PROMPTS, behaviour.MAX_NEW_TOKENS))

    def _other_figures(self, model: Any) -> dict[str, float]:
        if self.base_choices is None or self.base_behaviour is None:
            return {}
        ended, tokens = self._behaviour(model)
        return {
            "probe/choices": self._choices(model),
            "probe/base_choices": self.base_choices,
            "probe/ended": ended,
            "probe/base_ended": self.base_behaviour[0],
            "probe/answer_tokens": tokens,
            "probe/base_answer_tokens": self.base_behaviour[1],
        }

    def _answers(self, model: Any, prompts: Sequence[str], tokens: int) -> list[GreedyAnswer]:
        """Greedy, so that it draws nothing."""
        with uncompiled(), autocast(model.device, self.precision):
            return behaviour.greedy_answers(
                model, self.tokenizer, prompts, tokens, self.length, self.sign
            )
