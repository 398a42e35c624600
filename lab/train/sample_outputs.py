"""Samples during a run: what the model answers to one prompt, greedily, as it changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lab.data import chat_template, stop_tokens
from lab.data.catalog import Dataset
from lab.data.prepare import PreparedData
from lab.models.context_length import PromptTooLong, room_for_answer
from lab.models.weights import evaluating
from lab.train.behaviour import GREEDY
from lab.train.telemetry import Telemetry

TEXT_EVERY = 4  # tokens between two texts for a person who watches
MAX_NEW_TOKENS = 48  # new tokens; enough to see a style, short enough not to hold up a CPU


class SampleGenerator:
    """Answers one prompt with the model as it is; each answer becomes an event."""

    def __init__(
        self,
        tokenizer: Any,
        dataset: Dataset,
        data: PreparedData,
        telemetry: Telemetry,
        precision: str,
        command: Callable[[], str | None] = lambda: None,
        length: int | None = None,
    ) -> None:
        """`length`: the most tokens that the model reads, prompt and answer together."""
        self.command = command  # what a person has asked meanwhile
        self._begun_at, self._text = 0, ""
        self.tokenizer, self.telemetry, self.precision = tokenizer, telemetry, precision
        self.question, self.prompt = _prompt(tokenizer, dataset, data)
        ids = tokenizer(self.prompt, add_special_tokens=False)["input_ids"]
        try:
            self.room = room_for_answer(len(ids), length, "the model")
        except PromptTooLong as error:
            self.room = 0
            telemetry.warn(f"No samples are made. {error.message}")

    def sample(self, model: Any, step: int) -> None:
        """Write one `sample` event; none if the run is stopped meanwhile. Draws no random number,
        so a resumed run stays the same."""
        import torch

        from lab.train.step import autocast, uncompiled

        if not self.room:
            return
        self.telemetry.enter_phase("sampling")
        inputs = self.tokenizer(self.prompt, add_special_tokens=False, return_tensors="pt")
        inputs = inputs.to(next(model.parameters()).device)
        self._begun_at = inputs["input_ids"].shape[1]
        # trained parts may be float32 beside 16-bit weights, as in the step itself
        precise = autocast(model.device, self.precision)
        with evaluating(model), torch.inference_mode(), uncompiled(), precise:
            output = model.generate(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                max_new_tokens=min(MAX_NEW_TOKENS, self.room),
                use_cache=True,
                pad_token_id=self.tokenizer.pad_token_id,
                eos_token_id=stop_tokens.ids(self.tokenizer, model),
                stopping_criteria=[self._is_stopped],
                **GREEDY,
            )
        if self.command() in ("stop", "cancel"):
            return
        ids = output[0, self._begun_at :]
        text = self.tokenizer.decode(ids, skip_special_tokens=True).strip()
        self.telemetry.event("sample", step=step, prompt=self.question, text=text)

    def _is_stopped(self, ids: Any, scores: Any, **_: Any) -> Any:
        """After each token: how far it is, the text now and then, and whether the rest of the
        sample is still wanted."""
        import torch

        done = ids.shape[1] - self._begun_at
        if done % TEXT_EVERY == 1:
            self._text = self.tokenizer.decode(ids[0, self._begun_at :], skip_special_tokens=True)
        self.telemetry.writing(done, min(MAX_NEW_TOKENS, self.room), self._text)
        is_over = self.command() in ("stop", "cancel")
        return torch.full((ids.shape[0],), is_over, dtype=torch.bool, device=ids.device)


def _prompt(tokenizer: Any, dataset: Dataset, data: PreparedData) -> tuple[str, str]:
    """(what a person reads, what the model reads): the card's first suggestion, else the first
    example's question, else the beginning of the first text."""
    suggestions = dataset.card.get("try") or []
    example = data.first
    if suggestions:
        turns: tuple[dict[str, str], ...] = ({"role": "user", "content": str(suggestions[0])},)
    else:
        answered = [index for index, m in enumerate(example.messages) if m["role"] == "assistant"]
        turns = example.messages[: answered[0]] if answered else ()
    if turns:
        messages = chat_template.with_system(turns, data.system_prompt)
        tools = () if suggestions else getattr(example, "tools", None) or ()
        return turns[-1]["content"], chat_template.render(
            tokenizer, messages, to_answer=True, tools=list(tools)
        )
    opening = " ".join(example.text.split()[:8])
    return opening, opening
