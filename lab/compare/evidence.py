"""What races on a machine have shown: one file each, written by the lab and never by hand.

Those that come with the lab lie in `assets/evidence`, those of this home in `LAB_HOME/evidence`.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lab import host, paths
from lab.atomic_files import read_object, write_json
from lab.dataclass_json import read
from lab.errors import LabError
from lab.formatting import quantity
from lab.paths import ASSETS, ROOT
from lab.schema import quote

# What a claim is after a test. "open": the race shows no difference; "depends": one seed or one
# pair says this, another one that.
VERDICTS = ("confirmed", "off", "depends", "open")
EVIDENCE_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,79}", re.ASCII)
VERSIONS_OF = ("torch", "transformers", "peft")


@dataclass(frozen=True)
class SeedFigures:
    """The figures of one run, by their keys in `lab.compare.race_figures.FIGURES`."""

    seed: int = 0
    run: str = ""
    state: str = ""
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ContestantFigures:
    """`settings`: what of the spec makes this contestant differ, by dotted keys."""

    name: str = ""
    method: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    seeds: tuple[SeedFigures, ...] = ()

    def mean(self, figure: str) -> float | None:
        """Over the seeds that have the figure."""
        values = [each.figures[figure] for each in self.seeds if figure in each.figures]
        return sum(values) / len(values) if values else None


@dataclass(frozen=True)
class ClaimVerdict:
    """`verdict` is one of VERDICTS; `value` the measured figure that it rests on, usually a
    difference; `sentence` says both in words, with their uncertainty."""

    verdict: str = "open"
    value: float | None = None
    sentence: str = ""


@dataclass(frozen=True)
class Evidence:
    """One race and what it says of the claims that it tests. `minutes`: of all its runs together;
    `code`: hash of the lab's sources; `date`: ISO, of the last run's end."""

    id: str = ""
    title: str = ""
    claims: tuple[str, ...] = ()
    question: str = ""
    base: str = ""
    dataset: str = ""
    budget: str = ""
    contestants: tuple[ContestantFigures, ...] = ()
    outcome: str = ""
    verdicts: Mapping[str, ClaimVerdict] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    machine: str = ""
    date: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    code: str = ""
    minutes: float = 0.0

    def to_json(self) -> dict[str, Any]:
        return {"v": 1, **asdict(self)}


def shipped_folder() -> Path:
    return ASSETS / "evidence"


def folder() -> Path:
    return paths.home() / "evidence"


def all_evidence() -> list[Evidence]:
    """What comes with the lab and what was measured in this home, the newest first. A file of this
    home replaces a shipped one of the same id."""
    by_id: dict[str, Evidence] = {}
    for root in (shipped_folder(), folder()):
        for file in sorted(root.glob("*.json")):
            evidence = read_file(file)
            if evidence is not None:
                by_id[evidence.id] = evidence
    return sorted(by_id.values(), key=lambda evidence: evidence.date, reverse=True)


def of_claim(claim: str) -> list[Evidence]:
    """The evidence with a verdict on `claim`, the newest first."""
    return [evidence for evidence in all_evidence() if claim in evidence.verdicts]


def read_file(file: Path) -> Evidence | None:
    """None for a file that holds no evidence of its own name, or a verdict that there is not."""
    evidence = read(Evidence, read_object(file)) if EVIDENCE_ID.fullmatch(file.stem) else None
    if evidence is None or evidence.id != file.stem:
        return None
    if any(each.verdict not in VERDICTS for each in evidence.verdicts.values()):
        return None
    return evidence


def write(evidence: Evidence) -> Path:
    """Into LAB_HOME/evidence. Raises LabError for an id that is no file's name."""
    if not EVIDENCE_ID.fullmatch(evidence.id):
        raise LabError(
            f"'{quote(evidence.id)}' cannot name evidence.", "Use small letters, digits and dashes."
        )
    file = paths.make_folder(folder()) / f"{evidence.id}.json"
    write_json(file, evidence.to_json())
    return file


def machine_in_words() -> str:
    """ "AMD EPYC 7B13, 2 cores, 8.3 GB" or the GPU's name and memory."""
    facts = host.describe()
    processor = (
        f"{facts.processor}, {quantity(facts.cores, 'core')}, {facts.memory_bytes / 1e9:.1f} GB"
    )
    gpus = [f"{gpu.name}, {gpu.memory_bytes / 1e9:.0f} GB" for gpu in facts.gpus]
    return "; ".join([*gpus, processor])


def versions() -> dict[str, str]:
    return {name: version(name) for name in VERSIONS_OF}


def today() -> str:
    return time.strftime("%Y-%m-%d")


@cache
def code_hash() -> str:
    """The first 16 hexadecimal digits of a sha256 over the names and contents of the lab's own
    sources, in the order of their names."""
    digest = hashlib.sha256()
    for file in sorted((ROOT / "lab").rglob("*.py")):
        digest.update(str(file.relative_to(ROOT)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]
