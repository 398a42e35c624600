"""Claims about quality and forgetting: only runs can tell. What the step says is computed."""

from __future__ import annotations

from lab.advise.claims import Basis, Claim, Finding, Ruling, Sum, finds
from lab.advise.claims.memory_rules import A100, MODELS, simulated, under

# claims that a run on this machine could test, and what it would take
UNTESTED = {
    "A5": "a pair of runs with the forgetting probe",
    "A10": "full against LoRA on a small dataset",
    "A13": "a race of ranks",
    "B12": "full against LoRA, each at its best learning rate",
    "C11": "a race of ranks and target modules",
    "C12": "LoRA at a low and a high rank, and their singular values",
    "C14": "a race with and without general text",
    "C20": "a pair of runs with the forgetting probe",
    "C21": "a race on made-up facts, asked as questions",
    "E1": "a race of learning rates",
    "E2": "a race of target modules at equal parameters",
    "E3": "a race of ranks with evaluations on the way",
    "E4": "a race of batch sizes",
}
# and those that none here could
OUT_OF_REACH = {
    "A8": "pairs of runs on models of several sizes, and a GPU for the larger ones",
    "C22": "more than 10 million examples, and the GPU weeks to train on them",
}


def _open(test: str, note: str = "") -> Finding:
    return Finding("–", Basis.NOT_YET, Ruling.OPEN, f"until tested: needs {test}", (), note)


for claim_id in UNTESTED:
    finds(claim_id)(lambda claim: _open(UNTESTED[claim.id]))
for claim_id in OUT_OF_REACH:
    finds(claim_id)(
        lambda claim: Finding("–", Basis.NOT_TESTABLE, Ruling.NEEDS, OUT_OF_REACH[claim.id])
    )


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
