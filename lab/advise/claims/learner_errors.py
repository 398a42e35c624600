"""Claims about what goes wrong: what the lab says of each, asked for on the spot."""

from __future__ import annotations

from lab.advise import worth_knowing
from lab.advise.claims import Basis, Claim, Finding, Ruling, finds
from lab.advise.options import estimate
from lab.errors import SpecError


@finds("D6")
def explained(claim: Claim) -> Finding:
    spec = {
        "model": "config:gpt2",
        "method": {"name": "lora", "target_modules": ["q_proj"]},
        "data": {"max_length": 128},
        "train": {"batch_size": 1},
    }
    try:
        estimate(spec, {"kind": "cuda"})
    except SpecError as error:
        value = error.problems[0].message
        return Finding(
            value, Basis.COMPUTED, Ruling.CONFIRMED, "", (), "q_proj asked for in GPT-2."
        )
    return Finding("gpt2 takes q_proj", Basis.COMPUTED, Ruling.OFF, "", ())


@finds("C25")
def warned_of(claim: Claim) -> Finding:
    lora = {
        "method": {"name": "lora", "rank": 64, "alpha": 32.0},
        "data": {"objective": "pretraining"},
        "train": {"max_steps": 100},
    }
    full = {"method": {"name": "full"}, "train": {"max_steps": 100}}
    cautions = [
        *worth_knowing.of_spec(lora),
        *worth_knowing.of_spec(full),
        *worth_knowing.of_pair([lora, full]),
    ]
    texts = [caution.text for caution in cautions] + [worth_knowing.of_result("lora")]
    value = f"{sum(map(bool, texts))} of its 5 mistakes are told before the run or at the merge"
    kind = Ruling.CONFIRMED if all(texts) and len(texts) >= 5 else Ruling.OFF
    return Finding(value, Basis.COMPUTED, kind, "", (), " ".join(texts))
