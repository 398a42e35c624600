"""B10: the first method whose memory fits.

LoRA needs 2.0 GB a billion parameters and 2, QLoRA 0.6 and 2. LoRA where it fits, with rank 8, 16
or 32 by complexity; else QLoRA with rank 16 where it fits and the model is over 7 B; else, for
several tasks, bottleneck adapters of 64. The first that applies wins.
"""

from __future__ import annotations

from dataclasses import replace

from lab.advise.case import AdviceCase
from lab.advise.rules import Approach, RuleAnswer, gigabytes, register

RANKS = {"simple": 8, "moderate": 16, "complex": 32}
LORA_GB, QLORA_GB, FIXED_GB = 2.0, 0.6, 2.0  # the first two a billion parameters
QLORA_OVER_B, QLORA_RANK, BOTTLENECK = 7, 16, 64


def lora_gb(billions: float) -> float:
    return LORA_GB * billions + FIXED_GB


def qlora_gb(billions: float) -> float:
    return QLORA_GB * billions + FIXED_GB


@register(
    "B10",
    title="The first that fits",
    inputs=("parameters", "model", "gpu_gb", "gpu", "complexity", "tasks"),
    source="Article B, function that chooses a method",
)
def judge(case: AdviceCase) -> RuleAnswer:
    return replace(_first(case), wish=Approach.NOTHING)  # it knows nothing but memory


def _first(case: AdviceCase) -> RuleAnswer:
    room = case.memory_gb
    need, need4 = lora_gb(case.billions), qlora_gb(case.billions)
    several = case.tasks > 1
    if need <= room:
        rank = RANKS[case.complexity]
        also = (
            " Several tasks would add bottleneck adapters, but the first rule that applies wins; "
            "the article prints Adapter Layers for its example of this kind (7B, 24 GB, simple, "
            "several tasks), which its own rule does not return."
            if several
            else ""
        )
        return RuleAnswer(
            Approach.LORA,
            f"LoRA r{rank}",
            f"LoRA needs {LORA_GB:g} × {case.billions:.3g} + {FIXED_GB:g} = {gigabytes(need)} of "
            f"{gigabytes(room)}; the task is {case.complexity}: rank {rank}.{also}",
        )
    short = f"LoRA needs {gigabytes(need)} of {gigabytes(room)}"
    if need4 <= room and case.billions > QLORA_OVER_B:
        return RuleAnswer(
            Approach.QLORA,
            f"QLoRA r{QLORA_RANK}",
            f"{short}; QLoRA needs {QLORA_GB:g} × {case.billions:.3g} + {FIXED_GB:g} = "
            f"{gigabytes(need4)}, and the model is over {QLORA_OVER_B} B.",
        )
    why = (
        f"QLoRA needs {gigabytes(need4)}"
        if need4 > room
        else f"QLoRA would fit with {gigabytes(need4)}, but the rule allows it over "
        f"{QLORA_OVER_B} B only"
    )
    if several:
        return RuleAnswer(
            Approach.ADAPTERS,
            f"Bottleneck adapters ({BOTTLENECK})",
            f"{short}; {why}; several tasks: adapters, whose memory the rule does not look at.",
        )
    return RuleAnswer(Approach.NOTHING, Approach.NOTHING.in_words, f"{short}; {why}. None applies.")
