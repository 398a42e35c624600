"""LoRA plus fully trained embeddings and head, with room for new tokens.

y = W0 x + (alpha / r) B A x on every linear layer of the decoder, B zero at the start; the token
embeddings E (V, h) and the head (V, h) train as they are, tied ones as one. New tokens are added
to the tokenizer, and E grows by their rows, each the mean of the rows that were there.
Trainable = sum over linear layers of r (d_in + d_out) + V h, twice if the head is not tied, with
V the rows after growing (and the head's bias, where it has one).
Source: Hu et al. 2021, arXiv:2106.09685; for trained embeddings with LoRA: Chen et al. 2023,
arXiv:2309.12307, section 3.3 (LongLoRA).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lab.errors import Problem
from lab.formatting import quantity
from lab.methods import Context, Unsupported, register
from lab.methods.parts.diagram import ALL
from lab.methods.parts.lora_with_base import (
    LoraAndBase,
    OpenedConfig,
    add_lora,
    linear_in_layers,
    lora_count,
)
from lab.schema import option, quote

MAX_TOKENS = 10_000


@dataclass(frozen=True, kw_only=True)
class LoraEmbeddingsConfig(OpenedConfig):
    new_tokens: list[str] | None = option(
        None,
        "New tokens",
        "Strings added to the tokenizer as one token each, e.g. <tool>.",
        max_characters=200,
    )


@register(
    "lora_embeddings",
    title="LoRA + embeddings",
    source="arXiv:2309.12307",
    summary="LoRA on the layers while embeddings and head train fully. For new words, special "
    "tokens or a new language.",
    formula="y = W₀x + (α/r) B A x; E ← E − η ∇L",
    parameter_formula="Σ over linear layers of r (d_in + d_out) + V·h (twice if the head is "
    "not tied)",
    description="LoRA cannot teach a token that the model has never seen: its embedding is a row "
    "of a table, and the table is frozen. Here the table and the head train as well, "
    "new tokens get rows of their own that start at the mean of the others, and the "
    "low-rank matrices do the rest.",
    diagram_labels={"embeddings": ALL, "attention": "+ B·A", "feed_forward": "+ B·A", "head": ALL},
    config=LoraEmbeddingsConfig,
    default_lr=2e-4,
    can_script=Unsupported("new rows and a rate of their own for the tables are the lab's own."),
    can_quantise_base=Unsupported("it trains base weights, which must be unquantised."),
)
class LoraEmbeddings(LoraAndBase):
    def check(self, model: Any, config: LoraEmbeddingsConfig, context: Context) -> list[Problem]:
        tokens = config.new_tokens or []
        problems = []
        if len(tokens) > MAX_TOKENS:
            problems.append(
                Problem(
                    "method.new_tokens",
                    f"holds {quantity(len(tokens), 'token')}; at most {MAX_TOKENS:,} are possible.",
                )
            )
        for token in tokens:
            if not token.strip() or len(token) > 100:
                problems.append(
                    Problem(
                        "method.new_tokens",
                        f"holds '{quote(token)}'; a token has 1 to 100 characters that can be "
                        "seen.",
                    )
                )
        return problems

    def extend_tokenizer(self, tokenizer: Any, config: LoraEmbeddingsConfig) -> None:
        if config.new_tokens:
            tokenizer.add_tokens(config.new_tokens)

    def prepare(self, model: Any, config: LoraEmbeddingsConfig, context: Context) -> None:
        if len(context.tokenizer) > model.get_input_embeddings().weight.shape[0]:
            grow(model, len(context.tokenizer))

    def trainable_count(self, model: Any, config: LoraEmbeddingsConfig, context: Context) -> int:
        tables: dict[int, int] = {
            id(w): w.numel() for module in _tables(model) for w in module.parameters()
        }
        return lora_count(model, linear_in_layers(model), config.rank) + sum(tables.values())

    def apply(self, model: Any, config: LoraEmbeddingsConfig, context: Context) -> Any:
        tables = _tables(model)
        model = add_lora(model, linear_in_layers(model), config, context)
        for module in tables:
            module.requires_grad_(True)
        return model

    def resize_base(self, base: Any, tensors: dict[str, Any]) -> None:
        embeddings = base.get_input_embeddings()
        for name, module in base.named_modules():
            if module is embeddings and f"{name}.weight" in tensors:
                rows = tensors[f"{name}.weight"].shape[0]
                if rows != embeddings.weight.shape[0]:
                    base.resize_token_embeddings(rows, mean_resizing=False)
                return


def grow(model: Any, rows: int) -> None:
    """Embeddings and head with `rows` rows; each new one is the mean of the old."""
    import torch

    old = [module.weight.shape[0] for module in _tables(model)]
    # not the library's own mean resizing: that samples, and fails on the meta device
    model.resize_token_embeddings(rows, mean_resizing=False)
    with torch.no_grad():
        for module, before in zip(_tables(model), old, strict=True):
            module.weight[before:] = module.weight[:before].mean(dim=0)


def _tables(model: Any) -> list[Any]:
    return [model.get_input_embeddings(), model.get_output_embeddings()]
