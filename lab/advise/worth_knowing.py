"""Mistakes that C25 lists, found in a spec before it runs: each with the claim that it comes from.

They never refuse a run. New run, the Advisor and the command line show them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lab import formatting, methods

USUAL_RATIO = 2.0  # alpha over rank, C10


@dataclass(frozen=True)
class Caution:
    """`about`: what the spec does; `claim`: where that is said to be wrong."""

    about: str
    text: str
    claim: str


def of_spec(spec: dict[str, Any]) -> list[Caution]:
    """The warnings for a run; `spec` is its JSON, in which anything may be missing."""
    method = _part(spec, "method")
    data, train = _part(spec, "data"), _part(spec, "train")
    name = method.get("name")
    known = methods.get(name) if name in methods.names() else None
    if known is None:
        return []
    warnings = []
    is_adapter = not known.saves_whole_model
    if is_adapter and data.get("objective") == "pretraining":
        text = (
            "An adapter for continued pretraining: full fine-tuning is usual there, since new "
            "facts are not low-rank."
        )
        warnings.append(Caution("pretraining", text, "C25"))
    if known.trains_base_weights or known.saves_whole_model:
        if not data.get("general_fraction"):
            text = (
                "Base weights train without general data: mix 5 to 10 % in, or expect the model "
                "to forget."
            )
            warnings.append(Caution("general data", text, "C14"))
    warnings += _of_alpha(method, known)
    rate = train.get("learning_rate")
    if isinstance(rate, (int, float)) and known.saves_whole_model and rate > 5e-5:
        text = (
            f"Learning rate {formatting.rate(rate)} is above the usual 1e-5 to 5e-5 of full "
            "fine-tuning."
        )
        warnings.append(Caution("rate", text, "A3"))
    return warnings


def _of_alpha(method: dict[str, Any], known: methods.Method) -> list[Caution]:
    config = known.config()
    rank, alpha = method.get("rank"), method.get("alpha", getattr(config, "alpha", None))
    if not isinstance(rank, int) or not isinstance(alpha, (int, float)) or rank < 1:
        return []
    default = (getattr(config, "rank", None), getattr(config, "alpha", None))
    if rank == default[0] or alpha != default[1] or method.get("use_rslora"):
        return []
    text = (
        f"Alpha is still {alpha:g} at rank {rank}: the update is scaled by {alpha / rank:g}, "
        f"where {USUAL_RATIO:g} is usual (alpha {USUAL_RATIO * rank:g})."
    )
    return [Caution("alpha", text, "C10")]


def of_result(method: str) -> str:
    """What C25 says of merging where the adapter was wanted; "" for a method that cannot merge."""
    known = methods.get(method)
    if known.saves_whole_model or not known.can_merge:
        return ""
    return "Keep the adapter too: a merged model cannot be taken apart again."


def of_pair(specs: list[dict[str, Any]]) -> list[Caution]:
    """Of runs that are to be compared: equal steps, tokens or epochs are unequal work."""
    names = {_part(spec, "method").get("name") for spec in specs}
    if len(names) < 2:
        return []
    trains = [_part(spec, "train") for spec in specs]
    if any(all(train.get(fair) for train in trains) for fair in ("max_seconds", "max_flops")):
        return []
    limits = {"max_steps": "steps", "max_tokens": "tokens"}
    shared = [word for name, word in limits.items() if all(train.get(name) for train in trains)]
    text = (
        f"The two are compared at equal {shared[0] if shared else 'epochs'}, which are not equal "
        "work: full takes more time and FLOPs for them than an adapter. Equal seconds or FLOPs are "
        "fairer."
    )
    return [Caution("unequal compute", text, "C23")]


def _part(spec: dict[str, Any], name: str) -> dict[str, Any]:
    value = spec.get(name)
    return value if isinstance(value, dict) else {}
