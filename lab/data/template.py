"""From messages to token ids and labels. The labels are the lab's own.

Most chat templates do not mark the assistant's words, so the template is rendered up to each
assistant turn and the difference is what the model has to say. A label of -100 means "not
counted", the convention of torch.nn.functional.cross_entropy. Tensor legend: T tokens of a row.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from lab.data.rows import Example
from lab.errors import LabError

IGNORED = -100

# For a base model without a template of its own: plain headings that any tokenizer can spell.
PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '### ' + message['role'].capitalize() + ':\n' + message['content'] }}"
    "{{ eos_token if message['role'] == 'assistant' else '' }}{{ '\n\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Assistant:\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Tokens:
    """One row as the model sees it: ids and labels of equal length T, and its row in the file."""

    ids: list[int]
    labels: list[int]
    source: int = 0

    @property
    def counted(self) -> int:
        """Tokens that the loss counts; the first of a row is never predicted."""
        return sum(label != IGNORED for label in self.labels)


def ensure_template(tokenizer: Any) -> bool:
    """Give a tokenizer without a chat template the lab's plain one; True if it needed it."""
    if tokenizer.chat_template:
        return False
    tokenizer.chat_template = PLAIN_TEMPLATE
    return True


def with_system(messages: tuple[dict[str, str], ...], system_prompt: str) -> list[dict[str, str]]:
    """The messages, with `system_prompt` in front where they bring no system turn."""
    if system_prompt and messages[0]["role"] != "system":
        return [{"role": "system", "content": system_prompt}, *messages]
    return list(messages)


def render(tokenizer: Any, messages: list[dict[str, str]], *, to_answer: bool = False) -> str:
    """The exact text of a chat; with `to_answer`, up to where the assistant begins to speak."""
    from jinja2 import TemplateError

    try:
        return str(
            tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=to_answer)
        )
    except TemplateError as error:
        raise LabError(
            f"The chat template refuses this conversation: {error}.",
            "Check the order of the roles, and whether the template takes a system turn.",
        ) from None


def tokenize(
    example: Example, tokenizer: Any, system_prompt: str, loss_on: str, max_length: int
) -> list[Tokens]:
    """The rows that an example becomes: one for a chat, one for each `max_length` of a text."""
    if example.messages:
        return [_chat(example, tokenizer, system_prompt, loss_on, max_length)]
    ids = tokenizer(example.text, add_special_tokens=False)["input_ids"]
    ids = [*ids, tokenizer.eos_token_id]
    pieces = [ids[start : start + max_length] for start in range(0, len(ids), max_length)]
    return [Tokens(piece, [IGNORED, *piece[1:]], example.row) for piece in pieces]


def _chat(
    example: Example, tokenizer: Any, system_prompt: str, loss_on: str, max_length: int
) -> Tokens:
    messages = with_system(example.messages, system_prompt)
    text = render(tokenizer, messages)
    # The template writes every special token itself.
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids = list(encoded["input_ids"])
    if loss_on == "all":
        labels = ids.copy()
    else:
        spans = answer_spans(tokenizer, messages, text)
        if loss_on == "completion":
            spans = spans[-1:]
        labels = [
            token if any(low <= start < high for low, high in spans) else IGNORED
            for token, (start, _) in zip(ids, encoded["offset_mapping"], strict=True)
        ]
    if labels:
        labels[0] = IGNORED
    return Tokens(ids[:max_length], labels[:max_length], example.row)


def answer_spans(
    tokenizer: Any, messages: list[dict[str, str]], text: str
) -> list[tuple[int, int]]:
    """(start, end) in `text` of each assistant turn, its end-of-turn token included.

    Raises LabError where the template does not render a conversation turn after turn.
    """
    spans = []
    for place, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = render(tokenizer, messages[:place], to_answer=True)
        after = render(tokenizer, messages[: place + 1])
        if not text.startswith(before) or not text.startswith(after):
            raise LabError(
                f"The chat template changes earlier turns when turn {place + 1} is added.",
                "The loss cannot be limited to the assistant's words; set data.loss_on to all.",
            )
        spans.append((len(before), len(before) + len(_to_end_of_turn(tokenizer, after, before))))
    return spans


def _to_end_of_turn(tokenizer: Any, after: str, before: str) -> str:
    """What the assistant says: its words and the end token, without the line break behind it."""
    said = after[len(before) :]
    bare = said.rstrip()
    ends = tokenizer.all_special_tokens + list(tokenizer.get_added_vocab())
    return bare if any(bare.endswith(end) for end in ends) else said


def fingerprint(tokenizer: Any, system_prompt: str, loss_on: str) -> str:
    """Hash of everything that decides how text becomes tokens and labels."""
    parts = [
        tokenizer.chat_template,
        system_prompt,
        tokenizer.eos_token,
        tokenizer.pad_token,
        loss_on,
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
