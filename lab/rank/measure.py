"""Measure the rank of a run's updates, in a process of its own, and keep it as a file."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lab import dataclass_json, paths, process
from lab.atomic_files import read_object, write_json
from lab.errors import LabError
from lab.paths import RunDir
from lab.rank.spectrum import (
    ENERGY,
    MatrixSpectrum,
    count_intruders,
    energy_kept,
    low_rank_svd,
    spectrum,
    subspace_similarity,
)
from lab.rank.updates import Update, updates

MAX_RANK = 64  # up to which the energy that is kept is written down

Tell = Callable[[str, int], object]


@dataclass(frozen=True)
class RankReport:
    """`needed`: the rank that keeps the share `threshold` of the energy of all updates, of `rank`
    that there were. `energy`: share kept at rank 1, 2, …. `similarity`: of the other run's updates,
    by matrix, of the column spaces that hold this share of each."""

    run: str = ""
    other: str = ""
    needed: int = 0
    rank: int = 0
    energy: tuple[float, ...] = ()
    matrices: tuple[MatrixSpectrum, ...] = ()
    similarity: Mapping[str, float] = field(default_factory=dict)
    intruders: int | None = None
    threshold: float = ENERGY


def measure(
    run: RunDir,
    other: RunDir | None = None,
    *,
    intruders: bool = False,
    energy: float = ENERGY,
    tell: Tell = lambda phase, matrices: None,
) -> RankReport:
    """Raises LabError where a result changes no weights. `intruders` needs the SVD of every base
    matrix: seconds each for large ones."""
    spaces: dict[str, np.ndarray] = {}
    reports, values = [], []
    for update in updates(run, lambda phase: tell(phase, 0)):
        u, singular = _svd(update)
        values.append(singular)
        count = count_intruders(update.base, update.delta) if intruders else None
        rank = len(singular)
        shape = (update.base.shape[0], update.base.shape[1])
        report = spectrum(update.name, shape, rank, singular, count, energy)
        reports.append(report)
        spaces[update.name] = u[:, : report.needed]
        tell("decomposing", len(reports))
    if not reports:
        raise LabError(f"The result of {run.id} equals its base.", "Train it for longer.")
    similarity = {}
    if other is not None:
        for update in updates(other, lambda phase: tell(f"second run: {phase}", 0)):
            if update.name in spaces and spaces[update.name].shape[1]:
                u, singular = _svd(update)
                needed = spectrum("", (0, 0), len(singular), singular, None, energy).needed
                similarity[update.name] = subspace_similarity(spaces[update.name], u[:, :needed])
            tell("comparing", len(similarity))
        if not similarity:
            raise LabError("The two runs changed no matrix in common.", "Compare other runs.")
    rank = max(report.rank for report in reports)
    shares = energy_kept(values, rank)
    return RankReport(
        run=run.id,
        other=other.id if other else "",
        needed=int(np.searchsorted(shares, energy * (1 - 1e-12))) + 1,
        rank=rank,
        energy=tuple(float(share) for share in shares[:MAX_RANK]),
        matrices=tuple(reports),
        similarity=similarity,
        intruders=sum(report.intruders or 0 for report in reports) if intruders else None,
        threshold=energy,
    )


def _svd(update: Update) -> tuple[np.ndarray, np.ndarray]:
    """(U, singular values) of the update."""
    if update.right is not None:
        u, values, _ = low_rank_svd(update.left, update.right)
    else:
        u, values, _ = np.linalg.svd(update.left, full_matrices=False)
    return u, values


# -- kept as a file, made by a process of its own ------------------------------------------------


def file_of(run: RunDir, other: RunDir | None = None) -> Path:
    """Where the report of these results lies; another result under the same id is another file."""
    parts = [each.id + _result_identity(each) for each in (run, other) if each is not None]
    key = hashlib.sha256("|".join(parts).encode()).hexdigest()[:24]
    return paths.home() / "cache" / "rank" / f"{key}.json"


def _result_identity(run: RunDir) -> str:
    try:
        stat = (run.artifact / "receipt.json").stat()
    except OSError:
        return ""
    return f"{stat.st_ino} {stat.st_mtime_ns}"


@dataclass(frozen=True)
class RankProgress:
    """What the file says while there is no report: how far it is, or why it ended."""

    phase: str = ""
    done: int = 0
    error: str = ""
    process: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_running(self) -> bool:
        return not self.error and process.is_alive(dict(self.process))


def look(run: RunDir, other: RunDir | None = None) -> RankReport | RankProgress | None:
    """The report, or how far it is; None if nobody has asked for it, or its process is gone."""
    file = file_of(run, other)
    report = dataclass_json.read(RankReport, read_object(file))
    if report is not None:
        return report
    progress = dataclass_json.read(RankProgress, read_object(file.with_suffix(".progress")))
    return progress if progress is not None and (progress.error or progress.is_running) else None


def start(run: RunDir, other: RunDir | None = None) -> None:
    """Measure in the background: `look` tells how far it is."""
    file = file_of(run, other)
    paths.make_folder(file.parent)
    arguments = ["lab.rank", run.id, *([other.id] if other else [])]
    child = process.spawn(arguments, file.with_suffix(".log"))
    _write(file, RankProgress("starting", 0, "", process.identity(child.pid) or {}))


def work(run: RunDir, other: RunDir | None = None) -> int:
    """What the process does; its exit code."""
    import os

    file, worker = file_of(run, other), process.identity(os.getpid()) or {}
    paths.make_folder(file.parent)
    try:
        report = measure(
            run, other, tell=lambda phase, done: _write(file, RankProgress(phase, done, "", worker))
        )
    except LabError as error:
        _write(file, RankProgress(error=str(error)))
        return 1
    write_json(file, dataclasses.asdict(report))
    file.with_suffix(".progress").unlink(missing_ok=True)
    return 0


def _write(file: Path, progress: RankProgress) -> None:
    write_json(file.with_suffix(".progress"), dataclasses.asdict(progress), durable=False)
