"""Trainable tokens: train the embeddings of a few chosen tokens, nothing else.

E'[t] = d_t for the chosen tokens t, E'[t] = E[t] for all others, with d (n, h) trained from the
base's own rows, so step 0 equals the base. Where the head shares its weights with the embeddings,
it reads the same trained rows.
Trainable = n h, n the number of chosen tokens and h the hidden size.
Source: PEFT, package reference "Trainable Tokens".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lab.errors import Problem
from lab.methods import Context, register
from lab.methods.parts.peft_method import PeftMethod
from lab.schema import option, quote


@dataclass(frozen=True, kw_only=True)
class TrainableTokensConfig:
    tokens: list[str] | None = option(
        None,
        "Tokens",
        "Tokens whose embeddings train. Not set: the tokenizer's special tokens.",
    )


@register(
    "trainable_tokens",
    title="Trainable tokens",
    source="https://huggingface.co/docs/peft/package_reference/trainable_tokens",
    summary="Trains the embeddings of a few tokens, such as those that mark the turns of a chat. "
    "Everything else stays as it was.",
    formula="E′[t] = d_t for the chosen tokens, E[t] for all others",
    parameter_formula="n h: chosen tokens × hidden size",
    description="A model reads tokens as vectors. Training only a few of these vectors "
    "teaches it what "
    "a marker means, such as the beginning of an answer, without a single change to what it makes "
    "of words. It can do little alone; beside LoRA it is the cheap way to teach new markers.",
    diagram_labels={"embeddings": "+ n rows"},
    config=TrainableTokensConfig,
    default_lr=5e-3,
    can_merge=True,
)
class TrainableTokens(PeftMethod):
    peft_class = "TrainableTokensConfig"

    def check(self, model: Any, config: TrainableTokensConfig, context: Context) -> list[Problem]:
        if context.tokenizer is None:
            return []
        ids, unknown = token_ids(context.tokenizer, config)
        problems = [
            Problem(
                "method.tokens",
                f"'{quote(text)}' is not one token of this tokenizer. Give it as in its "
                "vocabulary.",
            )
            for text in unknown
        ]
        if not ids and not unknown:
            problems.append(
                Problem("method.tokens", "this tokenizer has no special tokens; name some.")
            )
        return problems

    def peft_config_kwargs(self, config: TrainableTokensConfig) -> dict[str, Any]:
        return {}

    def peft_config_kwargs_for(
        self, model: Any, config: TrainableTokensConfig, context: Context
    ) -> dict[str, Any]:
        return {"token_indices": token_ids(context.tokenizer, config)[0]}

    def script_before(self, config: TrainableTokensConfig) -> list[str]:
        if config.tokens is None:
            return ["tokens = sorted(set(tokenizer.all_special_ids))"]
        return [
            "known = tokenizer.get_vocab()",
            "tokens = [",
            "    known[text] if text in known else "
            "tokenizer.encode(text, add_special_tokens=False)[0]",
            f"    for text in {config.tokens!r}",
            "]",
            "tokens = sorted(set(tokens))",
        ]

    def script_settings(self, config: TrainableTokensConfig) -> dict[str, str]:
        return {"token_indices": "tokens"}

    def trainable_count(self, model: Any, config: TrainableTokensConfig, context: Context) -> int:
        width: int = model.get_input_embeddings().weight.shape[1]
        return len(token_ids(context.tokenizer, config)[0]) * width


def token_ids(tokenizer: Any, config: TrainableTokensConfig) -> tuple[list[int], list[str]]:
    """(ids of the chosen tokens in order, texts that are not a single token)."""
    if config.tokens is None:
        return sorted(set(tokenizer.all_special_ids)), []
    known = tokenizer.get_vocab()
    ids, unknown = set(), []
    for text in config.tokens:
        token_ids = (
            [known[text]] if text in known else tokenizer.encode(text, add_special_tokens=False)
        )
        if len(token_ids) == 1:
            ids.add(token_ids[0])
        else:
            unknown.append(text)
    return sorted(ids), unknown
