"""How to answer: the settings that are the same for all models of a chat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class GenerationSettings:
    """How to answer. `temperature` 0 takes the likeliest token each time; `top_k` 0 and `top_p` 1
    leave every token to choose from; an answer ends before the first of the strings of `stop`."""

    seed: int = 0
    max_new_tokens: int = 128
    temperature: float = 0.0
    system_prompt: str | None = None
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()

    @staticmethod
    def of_request(body: dict[str, Any]) -> GenerationSettings:
        """From the fields of `requests.Bounds`."""
        return GenerationSettings(
            seed=body["seed"],
            max_new_tokens=body["max_tokens"],
            temperature=body["temperature"],
            system_prompt=body["system_prompt"],
            top_p=body["top_p"],
            top_k=body["top_k"],
            repetition_penalty=body["repetition_penalty"],
            stop=tuple(body["stop"] or ()),
        )
