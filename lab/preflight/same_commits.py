"""Runs that are to be compared read the same commits of the Hub, whenever each is checked."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lab.atomic_files import part
from lab.checked_run import CheckedRun
from lab.data import catalog
from lab.hub import repository
from lab.preflight.client import planner


def check(spec: dict[str, Any], first: CheckedRun | None) -> CheckedRun:
    """The run that would start, with model and datasets of the Hub at the commits that `first`, the
    first run that was checked, has where both name the same. Raises SpecError, LabError.

    What was requested is kept as it was written: it names the branch, which may move on.
    """
    if first is None:
        return planner.check(spec)
    return replace(planner.check(_pinned(spec, first)), requested=spec)


def _pinned(spec: dict[str, Any], first: CheckedRun) -> dict[str, Any]:
    requested = first.requested
    pinned = dict(spec)
    begins_alike = spec.get("init_from_run") == requested.get("init_from_run")
    model = spec.get("model")
    if isinstance(model, str) and model == requested.get("model") and begins_alike:
        pinned["model"] = repository.at_commit(model, repository.split_id(first.spec.model)[1])
    before = catalog.hub_datasets(requested)
    same_sets = {
        name: getattr(first.spec.data, name)
        for name, dataset_id in catalog.hub_datasets(spec).items()
        if dataset_id == before.get(name)
    }
    return pinned | ({"data": part(spec, "data") | same_sets} if same_sets else {})
