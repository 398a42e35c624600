"""How many tokens a model reads at once, as its config says."""

from __future__ import annotations

import math
from typing import Any

from lab.errors import LabError
from lab.formatting import quantity
from lab.schema import quote

# in this order; what has none of them (Mamba, BLOOM) reads any number
FIELDS = ("max_position_embeddings", "n_positions", "max_seq_len")
STRETCHING = ("linear", "dynamic", "yarn")  # what multiplies the length that the field names


class PromptTooLong(LabError):
    """A prompt that leaves no room for an answer."""


def context_length(config: Any) -> int | None:
    """The most tokens that a model of `config` reads; None if nothing bounds them."""
    get_text_config = getattr(config, "get_text_config", None)
    text = get_text_config() if get_text_config else config
    lengths = (getattr(text, field, None) for field in FIELDS)
    length = next((value for value in lengths if type(value) is int and value > 0), None)
    if length is None:
        return None
    rope = getattr(text, "rope_parameters", None)
    if not isinstance(rope, dict) or rope.get("rope_type") not in STRETCHING:
        return length
    factor, original = rope.get("factor"), rope.get("original_max_position_embeddings")
    if not isinstance(factor, (int, float)) or not math.isfinite(factor):
        return length
    begin = original if type(original) is int else length
    return max(length, int(begin * factor))


def text_length(model_config: Any, method: Any, method_config: Any) -> int | None:
    """As `context_length`, less the virtual tokens that `method` puts before the text."""
    length = context_length(model_config)
    return None if length is None else max(length - sum(method.virtual_tokens(method_config)), 0)


def room_for_answer(prompt_tokens: int, length: int | None, name: str, virtual: int = 0) -> int:
    """The most tokens that an answer may have. Raises PromptTooLong if there is no room for any.

    `length` is what the model reads of text, beside `virtual` tokens of its method.
    """
    if length is None:
        return 1 << 30
    if prompt_tokens < length:
        return length - prompt_tokens
    beside = f" beside its {quantity(virtual, 'virtual token')}" if virtual else ""
    raise PromptTooLong(
        f"The prompt has {quantity(prompt_tokens, 'token')}, and {quote(name)} reads "
        f"{length:,}{beside}, the "
        "answer included.",
        "Shorten the prompt, or begin a new chat.",
    )
