"""Where a run stops to fit: what is asked on the way to the largest row, batch and model."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest

from lab.forecast import limits
from lab.forecast.resolve import resolve
from lab.forecast.target_device import TargetDevice
from lab.forecasts import How
from lab.spec import RunSpec


@pytest.fixture(autouse=True)
def no_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """These models cannot be traced, so that no outline says how many rows are about right."""
    monkeypatch.setattr(limits, "outline_for_any_rows", lambda *_: None)


def test_a_smaller_model_gets_no_longer_rows_than_it_reads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No model fits, so that the search comes down to the smallest, which reads 1,024 tokens."""
    questions: list[tuple[int, int]] = []

    def predict(config: Any, spec: RunSpec, options: Any) -> Any:
        questions.append((config.max_position_embeddings, spec.data.max_length))
        return SimpleNamespace(peak_bytes=10**15, how=How.OUTLINE)

    monkeypatch.setattr(limits, "predict_memory", predict)
    resolution = resolve(RunSpec.from_json({"data": {"max_length": 4096}}), True)
    config = SimpleNamespace(max_position_embeddings=8192)
    answer = limits.fit_limits(resolution, config, TargetDevice(True, 10**9))
    assert answer.largest_model == "" and min(reach for reach, _ in questions) == 1024
    assert all(length <= reach for reach, length in questions)


def test_the_largest_model_is_the_last_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 1, 2 and 3 GB, where 2.5 GB are free."""
    gigabytes = {"small": 1, "middle": 2, "large": 3}
    models = [SimpleNamespace(id=name, name=name.title()) for name in gigabytes]
    monkeypatch.setattr(limits.shipped_configs, "shipped", lambda: models)
    monkeypatch.setattr(limits.catalog, "resolve_config", str)
    monkeypatch.setattr(
        limits.weights, "load_config",
        lambda name: SimpleNamespace(max_position_embeddings=4096, size=gigabytes[name]),
    )  # fmt: skip
    monkeypatch.setattr(
        limits, "predict_memory",
        lambda config, spec, options: SimpleNamespace(
            peak_bytes=config.size * 10**9, how=How.OUTLINE
        ),
    )  # fmt: skip
    own = SimpleNamespace(max_position_embeddings=4096, size=9)
    answer = limits.fit_limits(resolve(RunSpec(), True), own, TargetDevice(True, 25 * 10**8))
    assert answer.largest_model == "Middle"
    assert (answer.longest_row, answer.largest_batch) == (0, 0), "not a row of its own model fits"


@pytest.mark.parametrize(("method", "way"), [("lora", "on"), ("prefix", "off")])
def test_layers_are_recomputed_where_that_is_open_and_the_method_can(
    monkeypatch: pytest.MonkeyPatch, method: str, way: str
) -> None:
    ways = set()

    def predict(config: Any, spec: RunSpec, options: Any) -> Any:
        ways.add(spec.train.activation_checkpointing)
        return SimpleNamespace(peak_bytes=10**15, how=How.OUTLINE)

    monkeypatch.setattr(limits, "predict_memory", predict)
    config = SimpleNamespace(max_position_embeddings=8192)
    resolution = resolve(RunSpec.from_json({"method": method}), True)
    limits.fit_limits(resolution, config, TargetDevice(True, 10**9))
    assert ways == {way}


@pytest.mark.parametrize("near", [None, 1, 300, 999])
@pytest.mark.parametrize("answer", [0, 1, 2, 299, 300, 301, 998, 999, 1000])
@pytest.mark.parametrize("kind", ["line", "steps", "curve", "unknown beyond"])
def test_the_largest_that_fits_is_found_to_the_last_one(
    kind: str, answer: int, near: int | None
) -> None:
    """Whatever the peaks between; the one behind it has a byte too much."""

    def peak(count: int) -> float:
        assert 1 <= count <= 1000, "no other count is possible"
        if kind == "unknown beyond" and count > answer:
            return math.inf
        return {"line": 5 * count, "steps": 5 * count // 7 * 7, "curve": count**2}.get(kind, count)

    room = 1.0 if not answer else peak(answer)
    expected = max((count for count in range(1, 1001) if peak(count) <= room), default=0)
    assert limits.largest_that_fits(peak, room, 1000, near) == expected


@pytest.mark.parametrize("about", [0, 1, 39, 40, 41, 42, 43, 999, 1000])
def test_a_guess_is_confirmed_or_replaced(about: int) -> None:
    """Two peaks tell that a guess is right; one that is far off costs a search."""
    counts: list[int] = []

    def peak(count: int) -> float:
        counts.append(count)
        return 100.0 + 5 * count

    assert limits.confirmed(peak, 300.0, 1000, about) == 40
    if about == 40:
        assert counts == [41, 40]
    assert limits.confirmed(peak, 50.0, 1000, about) == 0, "Nothing fits."
    assert limits.confirmed(peak, 1e9, 1000, about) == 1000, "No further than the lab goes."
