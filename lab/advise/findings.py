"""What the lab says of a claim: by an experiment here, by a race's evidence, or by its own sums."""

from __future__ import annotations

from dataclasses import replace

from lab.advise import claims, experiments
from lab.advise.claims import Basis, Claim, Finding, Ruling
from lab.compare import evidence

VERDICT_OF_EVIDENCE = {
    "confirmed": Ruling.CONFIRMED,
    "off": Ruling.OFF,
    "depends": Ruling.DEPENDS,
    "open": Ruling.OPEN,
}


def find(claim_id: str) -> Finding:
    """The lab's value and verdict. Raises LabError for an id that there is not."""
    claim = claims.get(claim_id)
    tested = experiments.finding_of(claim) or from_evidence(claim)
    if tested is None:
        return claims.compute(claim)
    if not claim.printed:
        return tested
    computed = claims.compute(claim)
    if computed.kind is not Ruling.CONTRADICTS:
        return tested
    # no race settles what contradicts its own formula
    note = f"{computed.note} Measured: {tested.value}".strip()
    return replace(computed, note=note, date=tested.date, machine=tested.machine,
                   evidence_id=tested.evidence_id, runs=tested.runs)  # fmt: skip


def from_evidence(claim: Claim) -> Finding | None:
    """The newest race that tested the claim; None without one."""
    tested = evidence.of_claim(claim.id)
    if not tested:
        return None
    newest = tested[0]
    verdict = newest.verdicts[claim.id]
    is_own = (evidence.folder() / f"{newest.id}.json").is_file()
    return Finding(
        verdict.sentence,
        Basis.MEASURED if is_own else Basis.EVIDENCE,
        VERDICT_OF_EVIDENCE[verdict.verdict],
        note=newest.outcome,
        date=newest.date,
        machine=newest.machine,
        evidence_id=newest.id,
    )
