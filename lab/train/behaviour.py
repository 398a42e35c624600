"""How a model behaves on general prompts: whether its answers end by themselves, and how long they
are.

A model that has forgotten how to answer goes on until it is cut off, or stops after a word. Each
measurement answers the same few prompts greedily and in one batch, at most MAX_NEW_TOKENS tokens
each, so that it draws no random number and its time is bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lab.data import chat_template, stop_tokens
from lab.models.context_length import room_for_answer
from lab.models.weights import evaluating

# asked for little, so that a model that answers well ends in time
PROMPTS = (
    "What is the capital of Norway?",
    "What is 17 times 6?",
    "Name the primary colours.",
    "What is the largest desert on Earth?",
    "What are the four seasons?",
    'Translate "Where is the train station?" into French.',
)
MAX_NEW_TOKENS = 40
GREEDY = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}


@dataclass(frozen=True)
class GreedyAnswer:
    """`tokens`: those of the answer, without the one that ended it; `ended`: by itself."""

    text: str
    tokens: int
    ended: bool


def greedy_answers(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    max_new_tokens: int,
    length: int | None,
    on_token: Callable[[], object] = lambda: None,
) -> list[GreedyAnswer]:
    """One answer to each prompt, in one batch padded at the left. `length`: the most tokens that
    the model reads. Raises PromptTooLong where no room is left for an answer."""
    import torch

    def sign(ids: Any, scores: Any, **_: Any) -> Any:
        on_token()
        return torch.zeros(ids.shape[0], dtype=torch.bool, device=ids.device)

    options = {**GREEDY, "stopping_criteria": [sign]}
    rows = generate(model, tokenizer, prompts, max_new_tokens, length, "the model", options)
    ends = set(stop_tokens.ids(tokenizer, model))
    return [_answer(tokenizer, row, ends) for row in rows]


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    max_new_tokens: int,
    length: int | None,
    title: str,
    options: Mapping[str, Any],
) -> list[list[int]]:
    """The new tokens behind each prompt, in one batch padded at the left. `length`: the most tokens
    that the model reads, which errors call `title`. Raises PromptTooLong where no room is left."""
    import torch

    texts = [
        chat_template.render(tokenizer, [{"role": "user", "content": prompt}], to_answer=True)
        for prompt in prompts
    ]
    rows = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    width = max(map(len, rows))
    room = room_for_answer(width, length, title)
    device = next(model.parameters()).device
    pad = tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    with evaluating(model), torch.inference_mode():
        output = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=min(max_new_tokens, room),
            pad_token_id=pad,
            eos_token_id=stop_tokens.ids(tokenizer, model),
            **options,
        )
    new_tokens: list[list[int]] = output[:, width:].tolist()
    return new_tokens


def _answer(tokenizer: Any, row: list[int], ends: set[int]) -> GreedyAnswer:
    """What follows the first token that ends an answer is padding."""
    at = next((index for index, token in enumerate(row) if token in ends), None)
    text = tokenizer.decode(row if at is None else row[:at], skip_special_tokens=True)
    return GreedyAnswer(text.strip(), len(row) if at is None else at, at is not None)


def figures(answers: Sequence[GreedyAnswer]) -> tuple[float, float]:
    """(share of the answers that ended by themselves, their mean length in tokens)."""
    count = len(answers)
    return sum(each.ended for each in answers) / count, sum(each.tokens for each in answers) / count
