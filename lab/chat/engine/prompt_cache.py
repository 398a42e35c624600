"""What a model has read of its conversations, kept so that only the new turn is read.

Prompts are read in blocks of BLOCK tokens from their beginning. A block then goes through products
of the same shapes whether the blocks before it are kept or read anew, so that both give the same
keys and values to the bit. Whole blocks of prompts are kept and nothing else: the tokens of an
answer were read one by one, perhaps beside other models, and are read again with the next question.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

BLOCK = 64  # tokens
CACHE_SIZE = 2  # conversations of one model
STRETCHED = ("dynamic", "longrope")  # positions that depend on how much is read at once


@dataclass(frozen=True)
class KeptPrompt:
    """The first tokens of a prompt, whole blocks of them, and their keys and values."""

    ids: list[int]
    cache: DynamicCache

    @property
    def bytes(self) -> int:
        return sum(
            tensor.untyped_storage().nbytes()
            for layer in self.cache.layers
            for tensor in (layer.keys, layer.values)
            if tensor is not None
        )


@dataclass
class KeptPrompts:
    """Those of one model, the one used last at the end."""

    prompts: list[KeptPrompt] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        return sum(prompt.bytes for prompt in self.prompts)

    def take(self, ids: list[int], most: int) -> tuple[DynamicCache | None, int]:
        """(the cache of the longest beginning of `ids` that is kept, cropped to it; its tokens, at
        most `most`). It is not kept any more: who reads on with it changes it."""
        best, length = None, 0
        for prompt in self.prompts:
            equal = min(_equal_tokens(prompt.ids, ids), most) // BLOCK * BLOCK
            if equal > length:
                best, length = prompt, equal
        if best is None:
            return None, 0
        self.prompts.remove(best)
        best.cache.crop(length - best.cache.get_seq_length())
        return best.cache, length

    def keep(self, ids: list[int], cache: DynamicCache) -> None:
        """Keep the cache of a prompt that begins with `ids`, without what was read behind them."""
        if not ids:
            return
        cache.crop(len(ids) - cache.get_seq_length())
        self.prompts = [*self.prompts, KeptPrompt(ids, cache)][-CACHE_SIZE:]

    def clear(self) -> None:
        self.prompts.clear()


@dataclass(frozen=True)
class ReadPrompt:
    """Whole blocks of a prompt that are read: `tokens` of it, `reused` of those from before."""

    cache: DynamicCache
    tokens: int
    reused: int


def can_keep(model: Any) -> bool:
    """Whether the model's cache is keys and values by position and nothing else, which can be cut
    anywhere."""
    config = model.config.get_text_config(decoder=True)
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = {rope.get("rope_type")} if isinstance(rope, dict) else set()
    if getattr(model, "_is_stateful", False) or kinds & set(STRETCHED):
        return False
    if not getattr(config, "num_attention_heads", None):
        return False
    layers = DynamicCache(config=config).layers
    return bool(layers) and all(type(layer) is DynamicLayer for layer in layers)


def read(
    model: Any, ids: torch.Tensor, prompts: KeptPrompts, is_over: Callable[[], bool]
) -> ReadPrompt | None:
    """Read the whole blocks of a prompt, `ids` (1, T), but its last two tokens or more, which are
    left to `generate`: a single one would be joined with those of other models. None where there
    is no such block, and where the model's cache cannot be kept. It ends early once `is_over`."""
    whole = (ids.shape[1] - 2) // BLOCK * BLOCK
    if whole <= 0 or not can_keep(model):
        return None
    cache, reused = prompts.take(ids[0].tolist(), whole)
    cache = cache or DynamicCache(config=model.config)
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    supports = getattr(inner, "_supports_logits_to_keep", lambda: False)()
    options = {"logits_to_keep": 1} if supports else {}
    tokens = reused
    for start in range(reused, whole, BLOCK):
        if is_over():
            break
        model(
            input_ids=ids[:, start : start + BLOCK],
            attention_mask=torch.ones_like(ids[:, : start + BLOCK]),
            past_key_values=cache,
            use_cache=True,
            **options,
        )
        tokens = start + BLOCK
    return ReadPrompt(cache, tokens, reused)


def _equal_tokens(first: list[int], second: list[int]) -> int:
    pairs = zip(first, second, strict=False)
    shorter = min(len(first), len(second))
    return next((index for index, (old, new) in enumerate(pairs) if old != new), shorter)
