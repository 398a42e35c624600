"""The forgetting probe of a run: what it measures of the base once, of the model at each
evaluation, and at the end.

While the run trains, the first LIVE_CHATS of the base's answers and a few multiple-choice questions
are measured; at the end all answers are, with the prompts whose answers became least likely and
what the model says to them now. Nothing draws a random number, so training goes on as it would
have.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lab.data import chat_template, stop_tokens
from lab.train import choice_probe, forgetting
from lab.train.forgetting import Likelihood
from lab.train.step import autocast, uncompiled

LIVE_CHATS = 20
LOST = 3  # examples of what was lost
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

    def measure_base(self, model: Any) -> None:
        """What everything is held against; before anything touches the base."""
        self.base = self._likelihood(model)
        self.base_choices = self._choices(model)

    def measure_live(self, model: Any) -> dict[str, float]:
        """The figures of a `probe` record on a part of the answers and questions."""
        assert self.base is not None
        base = self.base.first(LIVE_CHATS)
        tuned = self._likelihood(model, base.top_ids, LIVE_CHATS)
        return forgetting.compare(base, tuned) | self._choice_figures(model)

    def measure_end(self, model: Any) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """(the figures on all answers, examples of what was lost: {"prompt", "before", "now",
        "rise"}, the largest rise first)."""
        assert self.base is not None
        tuned = self._likelihood(model, self.base.top_ids)
        figures = forgetting.compare(self.base, tuned) | self._choice_figures(model)
        chats = [json.loads(line)["messages"] for line in self.answers.read_text().splitlines()]
        lost = [
            {
                "prompt": chats[index][0]["content"],
                "before": chats[index][-1]["content"],
                "now": self._answer(model, chats[index][0]["content"]),
                "rise": rise,
            }
            for index, rise in forgetting.most_lost(self.base, tuned, LOST)
            if index < len(chats)
        ]
        return figures, lost

    def _likelihood(self, model: Any, top_ids: Any = None, most: int | None = None) -> Likelihood:
        with uncompiled(), autocast(model.device, self.precision):
            return forgetting.likelihood(
                model, self.tokenizer, self.answers, top_ids, self.sign, self.length, most
            )

    def _choices(self, model: Any) -> float:
        with uncompiled(), autocast(model.device, self.precision):
            return choice_probe.centred_accuracy(model, self.tokenizer, self.sign)

    def _choice_figures(self, model: Any) -> dict[str, float]:
        if self.base_choices is None:
            return {}
        return {
            "probe/choices": self._choices(model),
            "probe/base_choices": self.base_choices,
        }

    def _answer(self, model: Any, prompt: str) -> str:
        """Greedy, so that it draws nothing."""
        import torch

        text = chat_template.render(
            self.tokenizer, [{"role": "user", "content": prompt}], to_answer=True
        )
        inputs = self.tokenizer(text, add_special_tokens=False, return_tensors="pt")
        inputs = inputs.to(model.device)
        was_training = model.training
        model.eval()
        try:
            with torch.inference_mode(), uncompiled(), autocast(model.device, self.precision):
                output = model.generate(
                    input_ids=inputs["input_ids"],
                    attention_mask=inputs["attention_mask"],
                    max_new_tokens=LOST_TOKENS,
                    do_sample=False,
                    temperature=None,
                    top_p=None,
                    top_k=None,
                    pad_token_id=self.tokenizer.pad_token_id,
                    eos_token_id=stop_tokens.ids(self.tokenizer, model),
                )
        finally:
            model.train(was_training)
        self.sign()
        answer = output[0, inputs["input_ids"].shape[1] :]
        return str(self.tokenizer.decode(answer, skip_special_tokens=True)).strip()
