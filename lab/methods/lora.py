"""LoRA: train a rank-r update beside each frozen weight.

y = W0 x + (alpha / r) B A x, with W0 (d_out, d_in) frozen, A (r, d_in) random, B (d_out, r) zero
at the start, so step 0 equals the base. Trainable = sum over targets of r (d_in + d_out).
Source: Hu et al. 2021, arXiv:2106.09685, section 4.1.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.errors import Problem
from lab.methods import Context, Method, register
from lab.schema import option, show


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    rank: int = option(
        16, "Rank r of the update. Trainable parameters grow linearly with it.", min=1, max=1024
    )
    alpha: float = option(
        32.0,
        "Scale: the update is multiplied by alpha / rank. Twice the rank is the usual choice; "
        "changing the rank alone changes the effective learning rate.",
        above=0.0,
        max=65_536,
    )
    dropout: float = option(
        0.05, "Share of the update's input zeroed at each step.", min=0.0, max=0.95
    )
    targets: str | list[str] = option(
        "all-linear",
        "Which weights get an update: all-linear (every linear layer but the head), a list of "
        "names such as q_proj and v_proj, or a pattern (regular expression) over full names.",
        max_characters=4096,
    )


@register(
    "lora",
    title="LoRA",
    source="arXiv:2106.09685",
    summary="Freezes the base and trains a low-rank update beside its linear layers. A small file, "
    "little training state, and the base stays as it was.",
    formula="y = W₀x + (α/r) B A x",
    count="Σ over targets of r (d_in + d_out)",
    explain="The base stays frozen. Beside each chosen weight stand two thin matrices: A brings "
    "the input down to r numbers, B brings them back up. B starts at zero, so the first step "
    "begins exactly at the base. Only A and B get gradients and moments, which is why the "
    "training state shrinks a hundredfold, and their product can be added into the weight "
    "afterwards at no cost.",
    trains={"attention": "+ B·A", "feed_forward": "+ B·A"},
    config=LoraConfig,
    default_lr=2e-4,
    can_merge=True,
)
class Lora(Method):
    def check(self, model: Any, config: LoraConfig, context: Context) -> list[Problem]:
        if config.targets == "all-linear":
            return []
        linear = linear_names(model)
        wanted = config.targets if isinstance(config.targets, list) else [config.targets]
        is_pattern = isinstance(config.targets, str)
        choices = ", ".join(sorted({name.rsplit(".", 1)[-1] for name in linear}))
        problems = []
        for target in wanted:
            try:
                found = any(matches(target, name, is_pattern) for name in linear)
            except re.error as error:
                problems.append(
                    Problem("method.targets", f"'{show(target)}' is not a pattern: {error}.")
                )
                continue
            if not found:
                problems.append(
                    Problem(
                        "method.targets",
                        f"'{show(target)}' names no linear layer of this model. "
                        f'Choose from: {choices}; or "all-linear".',
                    )
                )
        return problems

    def apply(self, model: Any, config: LoraConfig, context: Context) -> Any:
        import peft

        settings = peft.LoraConfig(
            r=config.rank,
            lora_alpha=config.alpha,  # type: ignore[arg-type]
            lora_dropout=config.dropout,
            target_modules=config.targets,
            task_type="CAUSAL_LM",
        )
        # PEFT raises a 16-bit adapter to float32 unless told not to.
        in_float32 = context.spec.train.adapter_precision == "float32"
        return peft.get_peft_model(model, settings, autocast_adapter_dtype=in_float32)

    def script(self, config: LoraConfig) -> list[str]:
        return [
            "import peft  # noqa: E402",
            "",
            "model = peft.get_peft_model(",
            "    model,",
            "    peft.LoraConfig(",
            f"        r={config.rank},",
            f"        lora_alpha={config.alpha:g},",
            f"        lora_dropout={config.dropout},",
            f"        target_modules={config.targets!r},",
            '        task_type="CAUSAL_LM",',
            "    ),",
            ")",
            "model.print_trainable_parameters()",
        ]

    def save(self, model: Any, folder: Path) -> None:
        model.save_pretrained(folder)

    def load(self, base: Any, folder: Path) -> Any:
        import peft

        return peft.PeftModel.from_pretrained(base, str(folder))


def linear_names(model: Any) -> list[str]:
    """Full names of the layers that LoRA can sit beside: nn.Linear and GPT-2's Conv1D."""
    import torch
    from transformers.pytorch_utils import Conv1D

    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, (torch.nn.Linear, Conv1D))
    ]


def matches(target: str, name: str, is_pattern: bool) -> bool:
    """Whether PEFT would take layer `name` for `target`: by whole pattern, or by last parts."""
    if is_pattern:
        return re.fullmatch(target, name) is not None
    return name == target or name.endswith(f".{target}")
