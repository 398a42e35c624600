"""Stub tokenizer for estimates from a config alone: knows vocabulary size and special tokens.

Enough to build a method's structure for an estimate. It turns no text into tokens that mean
anything.
"""

from __future__ import annotations

from typing import Any


class StubTokenizer:
    """Knows as many tokens as the model has embeddings, the special ones that its config names."""

    def __init__(self, config: Any) -> None:
        self._size = int(config.vocab_size)
        self._texts: dict[str, int] = {}
        named = (getattr(config, f"{name}_token_id", None) for name in ("bos", "eos", "pad"))
        listed = (
            token_id if isinstance(token_id, (list, tuple)) else [token_id] for token_id in named
        )
        special = {
            int(token_id)
            for ids in listed
            for token_id in ids
            if isinstance(token_id, int) and token_id >= 0
        }
        self._special = sorted(special) or [0]

    def __len__(self) -> int:
        return self._size

    @property
    def all_special_ids(self) -> list[int]:
        return self._special

    def add_tokens(self, tokens: list[str]) -> int:
        """Room for `tokens`; how many there were not before."""
        new = [token for token in dict.fromkeys(tokens) if token not in self._texts]
        self._texts |= {token: self._size + i for i, token in enumerate(new)}
        self._size += len(new)
        return len(new)

    def get_vocab(self) -> dict[str, int]:
        return self._texts

    def encode(self, text: str, **_: Any) -> list[int]:
        """A token of its own for each text, in the order that they are asked for."""
        return [self._texts.setdefault(text, len(self._texts))]

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": self.encode(text) if text else []}
