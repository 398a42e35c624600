"""AdaLoRA: spend a budget of ranks where it matters, and prune the rest during training.

y = W0 x + (alpha / r) P diag(e) Q x, with P (d_out, r), e (r,), Q (r, d_in); e is zero at the
start, so step 0 equals the base. After each step every triplet (a column of P, an entry of e, a
row of Q) gets a score from smoothed |weight x gradient|; the lowest entries of e are set to zero,
until `target_rank` a layer is left on average. A penalty keeps P and Q orthogonal.
Trainable = sum over targets of r (d_in + d_out + 1), with r the rank at the start.
Source: Zhang et al. 2023, arXiv:2303.10512, section 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lab.errors import Problem
from lab.methods import Context, Unsupported, register
from lab.methods.parts.peft_method import PeftMethod
from lab.methods.parts.target_modules import peft_targets, target_layers, targets_option
from lab.schema import option

SCORES = ("exp_avg_ipt", "exp_avg_unc")
PLACEHOLDER_STEPS = 1_000_000  # steps, before the run is planned


@dataclass(frozen=True, kw_only=True)
class AdaloraConfig:
    rank: int = option(12, "Initial rank", "Rank of every update at the start.", min=2, max=1024)
    target_rank: int = option(
        8,
        "Target rank",
        "Average rank per layer at the end; below the initial rank.",
        min=1,
        max=1023,
    )
    alpha: float = option(32.0, "LoRA alpha", "Scale of the update.", above=0.0, max=65_536)
    dropout: float = option(
        0.05, "LoRA dropout", "Dropout probability on the adapter input.", min=0.0, max=0.95
    )
    target_modules: str | list[str] = targets_option()
    tinit_ratio: float = option(
        0.1,
        "Pruning warm-up",
        "Fraction of the run before ranks are reduced (PEFT: tinit).",
        min=0.0,
        max=0.9,
        formerly="warmup",
    )
    tfinal_ratio: float = option(
        0.3,
        "Final phase",
        "Fraction at the end of the run with fixed ranks (PEFT: tfinal).",
        min=0.0,
        max=0.9,
        formerly="settle",
    )
    every: int = option(
        1,
        "Pruning interval (steps)",
        "Steps between two rank allocations (PEFT: deltaT).",
        min=1,
        max=100_000,
    )
    smoothing: float = option(
        0.85,
        "Importance smoothing",
        "EMA factor of the importance scores (PEFT: beta1, beta2).",
        above=0.0,
        max=0.999,
    )
    orthogonality: float = option(
        0.5,
        "Orthogonality penalty",
        "Weight of the penalty that keeps P and Q orthogonal (PEFT: orth_reg_weight).",
        min=0.0,
        max=100.0,
    )


@register(
    "adalora",
    title="AdaLoRA",
    source="arXiv:2303.10512",
    summary="LoRA that starts with a higher rank than needed and prunes the least important "
    "ranks, so that important layers keep more.",
    formula="y = W₀x + (α/r) P diag(e) Q x",
    parameter_formula="Σ over targets of r (d_in + d_out + 1), r at the start",
    description="Not every layer needs the same rank. AdaLoRA writes the update like a singular "
    "value decomposition, watches at each step which values move the loss, and sets "
    "the least important ones to zero until the budget is met. The saved adapter "
    "holds only what remains. It must know how long the run is, because the budget "
    "falls along the way.",
    diagram_labels={"attention": "+ P·e·Q", "feed_forward": "+ P·e·Q"},
    config=AdaloraConfig,
    default_lr=1e-3,
    can_merge=True,
    score_copies=3,  # the newest score, its mean and the mean of its changes
    can_update_in_backward=Unsupported(
        "its scores are made from the gradients after the step, and they are freed before it."
    ),
    can_limit_time=Unsupported(
        "its budget of ranks falls step by step, so the number of steps must be known. Set "
        "train.max_steps, train.max_tokens or train.epochs."
    ),
)
class Adalora(PeftMethod):
    peft_class = "AdaLoraConfig"
    vectors = (".lora_E.",)

    def check(self, model: Any, config: AdaloraConfig, context: Context) -> list[Problem]:
        problems = super().check(model, config, context)
        if config.target_rank >= config.rank:
            problems.append(
                Problem(
                    "method.target_rank",
                    f"is {config.target_rank}; it must be below rank, {config.rank}.",
                )
            )
        if config.tinit_ratio + config.tfinal_ratio > 0.95:
            problems.append(
                Problem(
                    "method.tfinal_ratio",
                    f"is {config.tfinal_ratio:g}; with tinit_ratio {config.tinit_ratio:g} less "
                    "than a twentieth of the run is left to prune in. Lower one.",
                )
            )
        return problems

    def peft_config_kwargs(self, config: AdaloraConfig) -> dict[str, Any]:
        return {
            "init_r": config.rank,
            "target_r": config.target_rank,
            "lora_alpha": config.alpha,
            "lora_dropout": config.dropout,
            "target_modules": peft_targets(config.target_modules),
            "deltaT": config.every,
            "beta1": config.smoothing,
            "beta2": config.smoothing,
            "orth_reg_weight": config.orthogonality,
            "total_step": PLACEHOLDER_STEPS,
        }

    def script_after(self, config: AdaloraConfig) -> list[str]:
        lines = [
            "for name, weight in model.named_parameters():",
            '    if ".ranknum." in name:  # a constant',
            "        weight.requires_grad_(False)",
            "",
            "",
            "def planned(steps):",
            "    total = max(steps, 2)",
            '    settings = model.peft_config["default"]',
            "    settings.total_step = total",
            f"    settings.tfinal = min(int({config.tfinal_ratio} * total), total - 2)",
            f"    settings.tinit = int({config.tinit_ratio} * total)",
            "    settings.tinit = min(settings.tinit, total - settings.tfinal - 1)",
            "",
            "",
            "def after_step(step):",
            "    model.base_model.update_and_allocate(step)",
            "",
            "",
        ]
        if not config.orthogonality:
            return lines
        return [
            *lines,
            "def penalty():",
            "    distances = []",
            "    for name, weight in model.named_parameters():",
            '        if ".lora_A." in name or ".lora_B." in name:',
            '            product = weight @ weight.T if ".lora_A." in name else weight.T @ weight',
            "            distances.append(torch.linalg.norm(product - torch.eye(*product.shape)",
            "                             .to(product)))",
            f"    return {config.orthogonality} * torch.stack(distances).mean()",
            "",
            "",
        ]

    def trainable_count(self, model: Any, config: AdaloraConfig, context: Context) -> int:
        layers = target_layers(model, config.target_modules)
        return sum(config.rank * (layer.d_in + layer.d_out + 1) for layer in layers)

    def apply(self, model: Any, config: AdaloraConfig, context: Context) -> Any:
        model = super().apply(model, config, context)
        for name, weight in model.named_parameters():
            if ".ranknum." in name:  # a constant, which PEFT thaws when it changes its type
                weight.requires_grad_(False)
        return model

    def set_total_steps(self, model: Any, config: AdaloraConfig, steps: int | None) -> None:
        """Fit the schedule of the budget to the run: at least one step prunes, and one before it
        gives the scores to prune by; a run of one step ends on the way."""
        total = max(steps or PLACEHOLDER_STEPS, 2)
        settings = model.peft_config["default"]
        settings.total_step = total
        settings.tfinal = min(int(config.tfinal_ratio * total), total - 2)
        settings.tinit = min(int(config.tinit_ratio * total), total - settings.tfinal - 1)

    def penalty(self, model: Any, config: AdaloraConfig) -> Any:
        """The mean distance of P'P and QQ' from the identity, as PEFT adds it to its own loss."""
        import torch

        if not config.orthogonality:
            return None
        distances = []
        for name, weight in model.named_parameters():
            if ".lora_A." in name or ".lora_B." in name:
                product = weight @ weight.T if ".lora_A." in name else weight.T @ weight
                identity = torch.eye(product.shape[0], device=weight.device, dtype=weight.dtype)
                distances.append(torch.linalg.norm(product - identity))
        return config.orthogonality * torch.stack(distances).mean()

    def on_optimizer_step(self, model: Any, config: AdaloraConfig, step: int) -> None:
        model.base_model.update_and_allocate(step)

    def scores(self, model: Any) -> list[Any]:
        allocator = model.base_model.rankallocator
        return [score for kind in ("ipt", *SCORES) for score in getattr(allocator, kind).values()]

    def state(self, model: Any) -> dict[str, Any]:
        """The smoothed scores, and which triplets are left."""
        import torch

        allocator = model.base_model.rankallocator
        tensors = {
            f"{kind}|{name}": score
            for kind in SCORES
            for name, score in getattr(allocator, kind).items()
        }
        left = model.peft_config["default"].rank_pattern or {}
        return tensors | {
            f"left|{name}": torch.tensor(mask, dtype=torch.bool) for name, mask in left.items()
        }

    def load_state(self, model: Any, state: dict[str, Any]) -> None:
        import torch

        allocator = model.base_model.rankallocator
        device = next(model.parameters()).device
        left = {}
        for key, value in state.items():
            kind, _, name = key.partition("|")
            if kind == "left":
                left[name] = value.tolist()
            else:
                getattr(allocator, kind)[name] = value.to(device)
                allocator.ipt.setdefault(name, torch.zeros_like(value, device=device))
        model.peft_config["default"].rank_pattern = left or None
