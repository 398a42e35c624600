"""Which rows of a set models can be asked: those that none of them was trained on.

A run learns from its data and from the general text that it mixes in, and its weights from all that
the runs learned which it began with or was combined from.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace

from lab import paths
from lab.atomic_files import read_object
from lab.data import batches, catalog
from lab.data.catalog import Dataset
from lab.data.example_reader import ExampleReader, ReadOptions
from lab.data.formats import Example
from lab.data.prepare import reading_of
from lab.errors import LabError
from lab.formatting import quantity
from lab.paths import RunDir
from lab.runs import record_reader
from lab.schema import quote
from lab.spec import DataSpec, RunSpec


def unlearned(dataset: Dataset, runs: Sequence[RunDir]) -> list[Example]:
    """Of a set that runs were trained on the rows that all of them held out; else the rows that its
    card holds out, or all. Raises LabError where nothing is left."""
    trained = [each for run in runs for each in _trainings(run, dataset)]
    if not trained:
        fraction = float(dataset.card.get("eval_fraction") or 0.0)
        examples = list(ExampleReader(dataset.path, ReadOptions(on_invalid_row="skip")))
        indices = batches.split_indices(len(examples), fraction)[1]
        return [examples[index] for index in indices] if indices else examples
    rows: dict[int, Example] | None = None
    for run, data, held_out_fraction in trained:
        options = replace(reading_of(data, dataset), on_invalid_row="skip")
        examples = list(ExampleReader(dataset.path, options))
        if held_out_fraction:
            check_number(run, dataset.id, len(examples))
        indices = batches.split_indices(len(examples), held_out_fraction)[1]
        held_out = {examples[index].row: examples[index] for index in indices}
        rows = held_out if rows is None else {row: rows[row] for row in rows if row in held_out}
    if not rows:
        raise LabError(
            f"The models were trained on every row of '{quote(dataset.id)}'.",
            "Choose a set that they do not know.",
        )
    return list(rows.values())


def check_number(run: RunDir, dataset_id: str, count: int) -> None:
    """Raise LabError where the run used another number of rows than the `count` of the file: the
    file has changed, or the chat template refused some. Which were held out depends on it."""
    used = record_reader.last_event(run, "data").get("examples", count)
    if used != count:
        raise LabError(
            f"{quote(run.id)} used {quantity(used, 'row')} of '{quote(dataset_id)}', which has "
            f"{quantity(count, 'usable row')} now: which were held out is not known.",
            "Choose another set.",
        )


def lineage(run: RunDir) -> list[RunDir]:
    """The run, and those whose training its weights hold; what is deleted is left out."""
    runs = [run]
    for each in runs:  # grows
        for run_id in _sources(each):
            with contextlib.suppress(LabError):
                source = paths.run_dir(run_id)
                if source not in runs:
                    runs.append(source)
    return runs


def _sources(run: RunDir) -> list[str]:
    """The runs that this one began with, or that it was made of (`export/new_result.py`)."""
    stored = read_object(run.spec) or {}
    sources = [str(stored.get("init_from_run") or "").removeprefix("run:")]
    receipt = read_object(run.artifact / "receipt.json") or {}
    for key, value in receipt.items():
        if key.endswith("_from") and isinstance(value, dict):
            results = value.get("results")
            sources += map(str, results if isinstance(results, list) else [])
    return sources


def _trainings(run: RunDir, dataset: Dataset) -> Iterator[tuple[RunDir, DataSpec, float]]:
    """(the run, its data section, the share that it held out) of each training on this file."""
    for each in lineage(run):
        if not each.spec.is_file():
            continue
        data = RunSpec.of_run(each).data
        if _is_file_of(data.dataset, dataset):
            yield each, data, data.held_out_fraction
        if data.general_fraction and _is_file_of(data.general_dataset, dataset):
            yield each, data, 0.0


def _is_file_of(dataset_id: str, dataset: Dataset) -> bool:
    with contextlib.suppress(LabError):  # it is gone, or the base's own answers
        return catalog.resolve(dataset_id).path == dataset.path
    return False
