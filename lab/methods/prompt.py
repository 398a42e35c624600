"""Prompt tuning: trained embeddings of virtual tokens before every row.

input = [p_1 ... p_n, E[x_1] ... E[x_T]] with p (n, h) trained; the model sees a longer row, and
the loss counts the real tokens only. Not equal to the base at step 0: the virtual tokens are read
from the start. Trainable = n h.
Source: Lester et al. 2021, arXiv:2104.08691.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lab.errors import Problem
from lab.methods import Context, register
from lab.methods.parts.peft_method import PeftMethod, is_meta
from lab.methods.parts.virtual_tokens import (
    NO_16_BITS,
    NO_PACKING,
    NO_START,
    STARTS,
    count_option,
    start_ids,
    start_lines,
    start_problems,
    text_option,
)
from lab.schema import option


@dataclass(frozen=True, kw_only=True)
class PromptConfig:
    num_virtual_tokens: int = count_option()
    init: str = option(
        "vocabulary",
        "Initialisation",
        "From embeddings of random tokens (vocabulary), of a text, or random numbers.",
        choices=STARTS,
        formerly="start",
    )
    text: str = text_option()


@register(
    "prompt",
    title="Prompt tuning",
    source="arXiv:2104.08691",
    summary="Learns a few vectors placed before every prompt, like words that cannot be "
    "written. The model itself stays untouched.",
    formula="input = [p₁ … p_n, E[x₁] … E[x_T]]",
    parameter_formula="n h: virtual tokens × hidden size",
    description="A good instruction before a question changes the answer. Prompt tuning "
    "searches for "
    "the best instruction directly among vectors instead of words. It has the fewest parameters "
    "of all, learns slowly, needs a high learning rate, and works better the larger the model "
    "is. Each virtual token takes a place in the context.",
    diagram_labels={"input": "all"},
    config=PromptConfig,
    default_lr=3e-2,
    can_pack=NO_PACKING,
    can_use_bfloat16_adapters=NO_16_BITS,
    is_identity_at_start=NO_START,
)
class Prompt(PeftMethod):
    peft_class = "PromptTuningConfig"

    def check(self, model: Any, config: PromptConfig, context: Context) -> list[Problem]:
        return start_problems(config, context)

    def peft_config_kwargs(self, config: PromptConfig) -> dict[str, Any]:
        return {"num_virtual_tokens": config.num_virtual_tokens}

    def apply(self, model: Any, config: PromptConfig, context: Context) -> Any:
        import torch

        table = model.get_input_embeddings().weight
        model = super().apply(model, config, context)
        if is_meta(model):
            return model
        prompt = model.prompt_encoder["default"].embedding.weight
        with torch.no_grad():
            if config.init == "random":
                # PEFT's own start has deviation 1, fifty times that of most embeddings
                prompt.copy_(torch.randn(prompt.shape) * float(table.float().std()))
            else:
                ids = start_ids(model, config, context).to(table.device)
                prompt.copy_(table[ids])
        return model

    def script_after(self, config: PromptConfig) -> list[str]:
        lines = [
            "table = model.get_input_embeddings().weight.data",
            'prompt = model.prompt_encoder["default"].embedding.weight.data',
        ]
        if config.init == "random":
            return [*lines, "prompt.copy_(torch.randn(prompt.shape) * float(table.float().std()))"]
        return [*lines, *start_lines(config), "prompt.copy_(table[ids.to(table.device)])"]

    def trainable_count(self, model: Any, config: PromptConfig, context: Context) -> int:
        width: int = model.get_input_embeddings().weight.shape[1]
        return config.num_virtual_tokens * width

    def virtual_tokens(self, config: PromptConfig) -> tuple[int, int]:
        return (config.num_virtual_tokens, 0)
