"""What the methods share that put trained virtual tokens before every row."""

from __future__ import annotations

from typing import Any

from lab.errors import Problem
from lab.methods import Context
from lab.methods.parts.compatibility import Unsupported
from lab.schema import option

NO_PACKING = Unsupported(
    "virtual tokens are prepended once per sequence, so only the first of several packed examples "
    "would see them. Set data.packing off."
)
NO_START = Unsupported("the virtual tokens are there from the first step on.")
NO_16_BITS = Unsupported("PEFT keeps virtual tokens in float32.")
STARTS = ("vocabulary", "text", "random")


def count_option() -> Any:
    """The field `num_virtual_tokens`: how many virtual tokens."""
    return option(
        20,
        "Virtual tokens",
        "Number of virtual tokens before every sequence.",
        min=1,
        max=1024,
        formerly="tokens",
    )


def text_option() -> Any:
    return option(
        "Answer as a helpful assistant would.",
        "Initial text",
        "Text the virtual tokens are initialised from; repeated or truncated to their number.",
        max_characters=4000,
        multiline=True,
    )


def start_problems(config: Any, context: Context) -> list[Problem]:
    if config.init == "text" and not config.text.strip():
        return [Problem("method.text", "is empty; start text needs some.")]
    return []


def start_ids(model: Any, config: Any, context: Context) -> Any:
    """(n,) token ids to begin from: the text's, repeated or cut, or some of the vocabulary."""
    import torch

    if config.init == "text":
        ids = context.tokenizer.encode(config.text, add_special_tokens=False)
        times = -(-config.num_virtual_tokens // len(ids))
        return torch.tensor((ids * times)[: config.num_virtual_tokens])
    size = min(len(context.tokenizer), model.get_input_embeddings().weight.shape[0])
    return torch.randint(0, size, (config.num_virtual_tokens,))


def start_lines(config: Any) -> list[str]:
    """Lines of a plain script that set `ids` as `start_ids` does."""
    if config.init == "text":
        return [
            f"ids = tokenizer.encode({config.text!r}, add_special_tokens=False)",
            f"ids = torch.tensor((ids * {config.num_virtual_tokens})"
            f"[:{config.num_virtual_tokens}])",
        ]
    return [
        "size = min(len(tokenizer), model.get_input_embeddings().weight.shape[0])",
        f"ids = torch.randint(0, size, ({config.num_virtual_tokens},))",
    ]
