"""Claims about quality and forgetting: only runs can tell. What the step says is computed."""

from __future__ import annotations

from lab.advise.claims import Basis, Claim, Finding, Ruling, Sum, finds
from lab.advise.claims.memory_rules import A100, MODELS, simulated, under


def _open(test: str, note: str = "") -> Finding:
    return Finding("–", Basis.NOT_YET, Ruling.OPEN, f"until tested: needs {test}", (), note)


def _needs(means: str, note: str = "") -> Finding:
    return Finding("–", Basis.NOT_TESTABLE, Ruling.NEEDS, means, (), note)


@finds("A5", "C20")
def forgetting(claim: Claim) -> Finding:
    return _open("a pair of runs with the forgetting probe")


@finds("A8")
def gap_by_size(claim: Claim) -> Finding:
    return _needs("pairs of runs on models of several sizes, and a GPU for the larger ones")


@finds("A10")
def few_examples(claim: Claim) -> Finding:
    return _open("full against LoRA on a small dataset")


@finds("B12")
def within_percents(claim: Claim) -> Finding:
    return _open("full against LoRA, each at its best learning rate")


@finds("C21")
def behaviour_and_facts(claim: Claim) -> Finding:
    return _open("a race on made-up facts, asked as questions")


@finds("C22")
def many_examples(claim: Claim) -> Finding:
    return _needs("more than 10 million examples, and the GPU weeks to train on them")


@finds("D4")
def early_judgement(claim: Claim) -> Finding:
    early, late = claim.printed["early_step"], claim.printed["late_step"]
    return _open("full against LoRA", f"Compared at step {early} and at the end ({late} there).")


@finds("C23")
def equal_steps(claim: Claim) -> Finding:
    full = simulated(MODELS["7B"], "full", 1, device=A100)
    lora = simulated(MODELS["7B"], "lora", 1, device=A100)
    speeds = [each.speed.tokens_per_s if each.speed else None for each in (full, lora)]
    ratio = speeds[1] / speeds[0] if speeds[0] and speeds[1] else 1.0
    figure = Sum(
        "time of a step", 1.0, 1.0, ratio, "times LoRA's", f"Mistral-7B on an A100, {under(1)}"
    )
    kind = Ruling.CONFIRMED if abs(figure.off_by) > 0.05 else Ruling.OFF
    value = f"a step of full takes {ratio:.2f} times the time of LoRA's"
    note = (
        "At equal steps full is given that much more time; races here count tokens, time or FLOPs."
    )
    return Finding(value, Basis.SIMULATED, kind, "", (figure,), note)


@finds("A13")
def best_rank(claim: Claim) -> Finding:
    return _open("a race of ranks")
