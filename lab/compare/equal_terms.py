"""Whether runs may be compared: everything that makes them unequal, in words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lab.atomic_files import finite_number, part
from lab.compare.contestants import Contestant, Names
from lab.compare.run_figures import RunFigures
from lab.formatting import count, duration, flops, short_id

TOKENS_APART = 1.02  # times as many; a budget ends between two steps
BUDGET_APART = 1.1  # times as many where steps of other sizes end a common budget
LIMITS = {"max_tokens": "tokens", "max_seconds": "seconds", "max_flops": "FLOPs"}
UNFINISHED = {
    "stopped": "was stopped before its end",
    "cancelled": "was cancelled",
    "failed": "failed",
    "crashed": "crashed",
    "deleted": "is deleted",
}
# settings of data that may differ beside the same examples
BESIDE_EXAMPLES = ("packing", "general_fraction", "general_dataset", "group_by_length")


@dataclass(frozen=True)
class EqualTerms:
    """`unequal`: what forbids a comparison. `remarks`: what a reader should know. `same`: what all
    have in common, in one sentence. `is_tuned` is False where learning rates are defaults."""

    unequal: tuple[str, ...]
    remarks: tuple[str, ...]
    same: str
    is_tuned: bool = True

    @property
    def title(self) -> str:
        if self.unequal:
            return "Not comparable"
        return "Comparable with a remark" if self.remarks else "Comparable"


def equal_terms(
    contestants: Sequence[Contestant], names: Names, stored: Callable[[str], str] = str
) -> EqualTerms:
    """The terms of two contestants or more; of one alone there is nothing to compare. `stored`
    writes the names of models and datasets, and settings, as the caller shows them."""
    runs = [run for contestant in contestants for run in contestant.runs]
    if len(contestants) < 2:
        return EqualTerms((), (), "")
    unequal = [
        *_other_base(runs, stored),
        *_other_data(runs, stored),
        *_unfinished(contestants, names),
        *_other_tokens(runs),
    ]
    default_rates = any(run.is_rate_default for run in runs)
    is_tuned = not default_rates or len({run.entry.method for run in runs}) == 1
    remarks = _remarks(contestants, runs, stored)
    if not is_tuned:
        remarks.append("Learning rates are defaults, not tuned.")
    return EqualTerms(tuple(unequal), tuple(remarks), _same(runs), is_tuned)


def _differ(runs: Sequence[RunFigures], value: Callable[[RunFigures], Any]) -> bool:
    return len({str(value(run)) for run in runs}) > 1


def _listed(
    runs: Sequence[RunFigures], value: Callable[[RunFigures], Any], stored: Callable[[str], str]
) -> str:
    """The different values, in the order of the runs."""
    return ", ".join(stored(text) for text in dict.fromkeys(str(value(run)) for run in runs))


def _data(run: RunFigures, key: str) -> Any:
    return part(run.spec, "data").get(key)


def _other_base(runs: Sequence[RunFigures], stored: Callable[[str], str] = str) -> list[str]:
    reasons = []
    known = _with_data(runs)
    are_known = len(known) == len(runs)
    if _differ(known, lambda run: run.base) or (
        not are_known and _differ(runs, lambda run: run.entry.model)
    ):
        models = _listed(runs, lambda run: short_id(run.entry.model), stored)
        reasons.append(f"They start from different base models: {models}.")
    if _differ(runs, lambda run: run.spec.get("init_from_run") or ""):
        reasons.append("One of them continues from the weights of another run.")
    return reasons


def _other_data(runs: Sequence[RunFigures], stored: Callable[[str], str]) -> list[str]:
    reasons = []
    template = ("template", "template_args", "system_prompt")
    if any(_differ(runs, lambda run, key=key: _data(run, key)) for key in template):  # type: ignore[misc]
        reasons.append("They use different chat templates or system prompts.")
    if _differ(runs, lambda run: run.data_hash) and _differ(runs, _examples):
        datasets = _listed(runs, lambda run: short_id(run.entry.dataset), stored)
        detail = f": {datasets}" if ", " in datasets else ", cut or rendered in different ways"
        reasons.append(f"They trained on different examples{detail}.")
    known = _with_data(runs)
    if _differ(known, lambda run: run.held_out_hash):
        reasons.append("They are measured on different held-out examples.")
    elif not all(run.held_out_hash for run in known):
        reasons.append("They held no examples out.")
    return reasons


def _with_data(runs: Sequence[RunFigures]) -> list[RunFigures]:
    """All but those that wait or have just begun: their weights and examples are not known yet."""
    return [run for run in runs if run.data_hash or run.entry.status.has_ended]


def _examples(run: RunFigures) -> str:
    """What decides which examples are trained on, whatever they are packed or mixed with."""
    settings = part(run.spec, "data")
    return str({key: settings[key] for key in sorted(settings) if key not in BESIDE_EXAMPLES})


def _unfinished(contestants: Sequence[Contestant], names: Names) -> list[str]:
    return [
        f"{names(contestant)} {UNFINISHED[run.entry.status.state]}."
        for contestant in contestants
        for run in contestant.runs
        if run.entry.status.state in UNFINISHED
    ]


def _limit(runs: Sequence[RunFigures]) -> tuple[str, float] | None:
    """The budget that all runs were given, other than steps or epochs: (its key, how much)."""
    for key in LIMITS:
        amounts = {finite_number(part(run.spec, "train").get(key)) for run in runs}
        if len(amounts) == 1 and (amount := amounts.pop()) is not None:
            return key, amount
    return None


def _other_tokens(runs: Sequence[RunFigures]) -> list[str]:
    """Of runs that still train nothing can be said yet."""
    ended = [run for run in runs if run.entry.status.has_ended]
    tokens = [run.tokens for run in ended]
    limit = _limit(runs)
    if len(ended) < 2 or (limit is not None and limit[0] != "max_tokens"):
        return []
    if max(tokens) <= TOKENS_APART * min(tokens) or _end_by_budget(ended):
        return []
    numbers = ", ".join(f"{value:,}" for value in dict.fromkeys(tokens))
    return [f"They trained on different numbers of tokens: {numbers}."]


def _end_by_budget(runs: Sequence[RunFigures]) -> bool:
    """Whether all reached their common budget of tokens, and their last steps took none of them far
    beyond it."""
    limit, tokens = _limit(runs), [run.tokens for run in runs]
    if limit is None or limit[0] != "max_tokens":
        return False
    return limit[1] <= min(tokens) and max(tokens) <= BUDGET_APART * limit[1]


def _remarks(
    contestants: Sequence[Contestant], runs: Sequence[RunFigures], stored: Callable[[str], str]
) -> list[str]:
    remarks = []
    seeds = {contestant.seeds for contestant in contestants}
    if len({len(each) for each in seeds}) > 1:
        remarks.append("Some have more seeds than others.")
    elif len(seeds) > 1:
        remarks.append("Their seeds differ, and with them the order of the data.")
    if _differ(runs, lambda run: _data(run, "general_fraction") or 0):
        remarks.append("Some mix general text in.")
    if _differ(runs, lambda run: _data(run, "packing")):
        remarks.append("Some pack several examples into a row.")
    if _differ(runs, _batch):
        remarks.append(f"Batch sizes differ: {_listed(runs, _batch, stored)}.")
    tokens = [run.tokens for run in runs]
    if max(tokens) > TOKENS_APART * min(tokens) and _end_by_budget(runs):
        remarks.append(
            f"A budget ends with a whole step: {min(tokens):,} to {max(tokens):,} tokens."
        )
    if _differ(runs, _precision):
        remarks.append(f"Precisions differ: {_listed(runs, _precision, stored)}.")
    if _differ([run for run in runs if run.device], lambda run: run.device):
        remarks.append("They ran on different devices: time, memory and energy do not compare.")
    return remarks


def _batch(run: RunFigures) -> int:
    """Examples a step."""
    train = part(run.spec, "train")
    sizes = (train.get("batch_size"), train.get("gradient_accumulation_steps"))
    return int((finite_number(sizes[0]) or 1) * (finite_number(sizes[1]) or 1))


def _precision(run: RunFigures) -> str:
    return str(part(run.spec, "train").get("precision"))


def _same(runs: Sequence[RunFigures]) -> str:
    """ "Same base, training and held-out examples, data order, precision and 8,240 tokens." """
    is_known = len(_with_data(runs)) == len(runs)
    things = [
        ("base", not _other_base(runs)),
        ("training examples", is_known and not _differ(runs, lambda run: run.data_hash)),
        ("held-out examples", is_known and not _differ(runs, lambda run: run.held_out_hash)),
        ("data order", is_known and not _differ(runs, lambda run: (run.seed, run.data_hash))),
        ("precision", not _differ(runs, _precision)),
    ]
    same = [title for title, is_same in things if is_same]
    if {"training examples", "held-out examples"} <= set(same):
        same.remove("training examples")
        same[same.index("held-out examples")] = "training and held-out examples"
    limit, tokens = _limit(runs), {run.tokens for run in runs}
    if limit is not None and limit[0] == "max_seconds":
        same.append(f"{duration(limit[1])} of training")
    elif limit is not None and limit[0] == "max_flops":
        same.append(flops(limit[1]))
    elif min(tokens) > 0 and max(tokens) <= TOKENS_APART * min(tokens):
        value = max(tokens)
        same.append(f"{value:,} tokens" if value < 1e6 else f"{count(value)} tokens")
    if not same:
        return ""
    return f"Same {', '.join(same[:-1])}{' and ' if len(same) > 1 else ''}{same[-1]}."
