"""What the lab says of a claim: by an experiment here, by a race's evidence, or by its own sums."""

from __future__ import annotations

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
    return experiments.finding_of(claim) or from_evidence(claim) or claims.compute(claim)


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
