"""What models answered to the questions of a set, and how right it was: `LAB_HOME/scores/KEY.json`.

A sheet is of one set asked in one way: the same questions, system prompt, pattern and length. Each
model has its answers in it, with what its weights were, so that those of a run that was resumed
since then do not count.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from lab import dataclass_json, paths
from lab.atomic_files import file_identity, part, read_object, write_json
from lab.chat.models import ModelRef
from lab.errors import LabError
from lab.recent import Recent


@dataclass(frozen=True)
class ScoredAnswer:
    """`likeliest`: of the question's options; "" where it has none. `label`: of a set's labels, the
    one that `text` gives; "" for none of them. `figures`: 1, 0 or a share."""

    text: str = ""
    likeliest: str = ""
    label: str = ""
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ScoredQuestion:
    """`row`: of the dataset's file."""

    row: int = 0
    prompt: str = ""
    reference: str = ""


@dataclass(frozen=True)
class ScoredModel:
    """`figures`: over all answers; `version`: of the weights that gave them; `date`: seconds since
    the epoch."""

    figures: Mapping[str, float] = field(default_factory=dict)
    answers: tuple[ScoredAnswer, ...] = ()
    version: str = ""
    date: float = 0.0


@dataclass(frozen=True)
class ScoreSheet:
    """`main`: the figure that says which answers are right. `models`: by their names in Chat."""

    dataset: str = ""
    kind: str = ""
    main: str = ""
    questions: tuple[ScoredQuestion, ...] = ()
    models: Mapping[str, ScoredModel] = field(default_factory=dict)

    def is_right(self, model: str, index: int) -> bool:
        return self.models[model].answers[index].figures.get(self.main, 0.0) >= 1.0


_sheets: Recent[tuple[Any, ...], ScoreSheet] = Recent(64)


def folder() -> Path:
    return paths.home() / "scores"


def file_of(parts: Sequence[Any]) -> Path:
    """The file of what is asked, which `parts` tell as JSON values."""
    key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]
    return folder() / f"{key}.json"


def read(file: Path) -> ScoreSheet | None:
    """None where there is none, or nothing in it that can be read."""
    key = (str(file), *file_identity(file))
    sheet = _sheets.get(key)
    if sheet is None:
        sheet = dataclass_json.read(ScoreSheet, read_object(file))
        if sheet is None or not sheet.main or not sheet.questions:
            return None
        whole = {
            name: model
            for name, model in sheet.models.items()
            if len(model.answers) == len(sheet.questions)
        }
        sheet = _sheets.put(key, replace(sheet, models=whole))
    return sheet


def all_sheets() -> list[ScoreSheet]:
    """The newest last."""
    files = [file for file in folder().glob("*.json") if file.is_file()]
    sheets = [sheet for file in files if (sheet := read(file)) is not None and sheet.models]
    return sorted(sheets, key=lambda sheet: max(each.date for each in sheet.models.values()))


def keep(
    file: Path, sheet: ScoreSheet, named: ModelRef, figures: Mapping[str, float],
    answers: Sequence[ScoredAnswer],
) -> None:  # fmt: skip
    """Put the answers of one model beside those that the file has. `sheet` is without models. What
    runs that were deleted had said goes."""
    paths.make_folder(folder())
    with _lock():
        known = read(file)
        models = {name: each for name, each in (known.models if known else {}).items() if _is(name)}
        models[named.name] = ScoredModel(
            dict(figures), tuple(answers), version_of(named), time.time()
        )
        write_json(file, {"v": 1, **asdict(replace(sheet, models=models))})


def _is(name: str) -> bool:
    """Whether a run is there still; of other models True."""
    kind, _, rest = name.partition(":")
    if kind != "run":
        return True
    try:
        paths.run_dir(rest.partition("@")[0])
    except LabError:
        return False
    return True


def version_of(named: ModelRef) -> str:
    """What changes as soon as a model would answer otherwise: its weights, or the template that a
    base is asked with."""
    template = named.template_of.receipt if named.template_of is not None else {}
    parts = [named.version, part(template, "lock")]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]


def answers_of(sheet: ScoreSheet | None, named: ModelRef) -> ScoredModel | None:
    """What the model said; None where it was not asked, or has other weights since."""
    known = sheet.models.get(named.name) if sheet is not None else None
    return known if known is not None and known.version == version_of(named) else None


@contextlib.contextmanager
def _lock() -> Iterator[None]:
    with (folder() / ".lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
