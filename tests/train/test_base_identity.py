"""A run goes on with the base that it began with, and with no other one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lab import paths
from lab.atomic_files import write_json
from lab.errors import LabError
from lab.models.catalog import ModelSource
from lab.models.weights_hash import EVENT, WeightsIdentity
from lab.paths import RunDir
from lab.runs import record_reader
from lab.train import base_identity
from lab.train.telemetry import Telemetry

SOURCE = ModelSource("some/base", "/models/base", local_only=True)
OURS, OTHER = "a" * 64, "b" * 64
BEGUN_WITH = "20260101-000000-start-abcd"
Identify = Callable[..., WeightsIdentity]


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run = RunDir(tmp_path / "20260101-000000-x-abcd")
    run.path.mkdir()
    return run


@pytest.fixture
def identify(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> Iterator[Identify]:
    """Look at a base whose weights have this hash; `looks` counts chances to end it."""
    telemetry = Telemetry(run, 1)

    def look(weights: str, begun_with: str = "", looks: list[int] | None = None) -> WeightsIdentity:
        def hash_of(source: ModelSource, progress: Any) -> WeightsIdentity:
            progress(2_500_000, 8_000_000)
            return WeightsIdentity(source.id, weights)

        monkeypatch.setattr(base_identity.weights_hash, "identify", hash_of)
        check = [].append if looks is None else looks.append
        return base_identity.identify_base(run, SOURCE, telemetry, lambda: check(1), begun_with)

    look.telemetry = telemetry  # type: ignore[attr-defined]
    yield look
    telemetry.stop()


def warnings(run: RunDir) -> list[str]:
    return [event["message"] for event in record_reader.events(run, "warning")]


def test_the_first_attempt_writes_down_the_base_and_later_ones_hold_it(
    run: RunDir, identify: Identify
) -> None:
    looks: list[int] = []
    assert identify(OURS, looks=looks).weights == OURS and looks == [1]
    progress = identify.telemetry._progress  # type: ignore[attr-defined]
    assert (progress["done"], progress["total"], progress["unit"]) == (2, 8, "MB of the base")
    assert identify(OURS).weights == OURS
    (event,) = record_reader.events(run, EVENT)
    assert (event["model"], event["weights"]) == ("some/base", OURS), "written down once"
    with pytest.raises(LabError, match="is not the one"):
        identify(OTHER)
    assert warnings(run) == []


def test_a_run_of_an_earlier_lab_is_told_that_nothing_was_checked(
    run: RunDir, identify: Identify
) -> None:
    identify.telemetry.event("data", examples=3)  # type: ignore[attr-defined]
    identify(OURS)
    (warning,) = warnings(run)
    assert "was not checked" in warning and run.id in warning
    with pytest.raises(LabError, match="is not the one"):
        identify(OTHER)


def test_weights_to_begin_with_belong_to_the_same_base(
    lab_home: Path, run: RunDir, identify: Identify
) -> None:
    receipt = RunDir(paths.runs() / BEGUN_WITH).artifact / "receipt.json"
    receipt.parent.mkdir(parents=True)
    write_json(receipt, {"base": {"weights": OURS}})
    identify(OURS, f"run:{BEGUN_WITH}")
    assert warnings(run) == []
    write_json(receipt, {})
    identify(OURS, f"run:{BEGUN_WITH}")
    (warning,) = warnings(run)
    assert "was not checked" in warning and BEGUN_WITH in warning
    write_json(receipt, {"base": {"weights": OTHER}})
    with pytest.raises(LabError, match=f"is not the one run:{BEGUN_WITH} was trained on"):
        identify(OURS, f"run:{BEGUN_WITH}")
