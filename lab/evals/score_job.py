"""Scores of runs and their base on a set, measured by a process of its own while pages look.

Only models without answers are asked; those of each model are kept as soon as it is done, so that a
stop loses no more than one model's.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lab import background_job
from lab.background_job import JobRecord
from lab.chat import models as chat_models
from lab.data import catalog
from lab.errors import LabError
from lab.evals import score, score_sheets
from lab.formatting import duration, quantity
from lab.paths import RunDir
from lab.spec import RunSpec

GENERAL_SET = "builtin:common-knowledge"  # fits every run: what a model knew before


def job_file(runs: Sequence[RunDir]) -> Path:
    """One job at a time for the same runs, whatever the set."""
    names = ",".join(sorted(run.id for run in runs))
    return _file(hashlib.sha256(names.encode()).hexdigest()[:24])


def _file(key: str) -> Path:
    return score_sheets.folder() / "jobs" / f"{key}.json"


def fitting_sets(runs: Sequence[RunDir]) -> list[str]:
    """Sets whose questions say something of these runs: what they were held to while they trained,
    their data's held-out rows, and common knowledge."""
    fitting: dict[str, None] = {}
    for run in runs:
        with contextlib.suppress(LabError):
            data = RunSpec.of_run(run).data
            if data.objective == "pretraining":
                continue
            if data.eval_dataset:
                fitting[data.eval_dataset] = None
            dataset = catalog.resolve(data.dataset)
            if dataset.card.get("held_out"):
                fitting[f"{dataset.id}@held-out"] = None
            if not data.eval_dataset and data.eval_fraction and _has_answers(dataset):
                fitting[data.dataset] = None
    return [*(name for name in fitting if name != GENERAL_SET), GENERAL_SET]


def _has_answers(dataset: catalog.Dataset) -> bool:
    is_text = dataset.card.get("format") == "text" or dataset.path.suffix == ".txt"
    return not is_text


def record(runs: Sequence[RunDir]) -> JobRecord | None:
    return background_job.read(job_file(runs))


def start(runs: Sequence[RunDir], dataset_id: str, most: int = score.MAX_QUESTIONS) -> None:
    """Begin to score these runs and their base. Raises LabError where one has no result, or they
    are being scored already."""
    names = [chat_models.parse(f"run:{run.id}").name for run in runs]
    catalog.resolve(dataset_id)
    file = job_file(runs)
    background_job.start(
        file,
        ["lab.evals", "score", file.stem],
        {"models": names, "dataset": dataset_id, "most": most},
    )


def stop(runs: Sequence[RunDir]) -> bool:
    return background_job.stop(job_file(runs))


def work(key: str) -> int:
    """Score in this process and keep a record of how far it is; the exit code."""
    return background_job.work(_file(Path(key).name), score_missing)


def score_missing(
    request: Mapping[str, Any], tell: Callable[[str], object]
) -> dict[str, list[str]]:
    """Ask the models of `request` that have no answers yet: {"asked": their names}. Raises
    LabError."""
    names = [chat_models.parse(str(name)) for name in request["models"]]
    ordered = chat_models.with_shared_template(score.with_base_first(names))
    terms = score.terms_of(ordered, str(request["dataset"]), int(request["most"]), "")
    sheet = score_sheets.read(terms.file)
    missing = [each for each in ordered if score_sheets.answers_of(sheet, each) is None]
    total = len(missing) * len(terms.items)
    started = time.monotonic()
    for position, named in enumerate(missing):
        before = position * len(terms.items)
        tell(f"loading model {position + 1} of {len(missing)}")

        def after_answer(model: str, done: int, count: int, before: int = before) -> None:
            tell(progress(before + done, total, time.monotonic() - started))

        score.measure(named, terms, after_answer)
    return {"asked": [each.name for each in missing]}


def progress(done: int, total: int, seconds: float) -> str:
    """ "12 of 66 answers, about 40 s left"."""
    left = seconds / done * (total - done)
    return f"{done} of {quantity(total, 'answer')}, about {duration(left)} left"
