"""Where a run stops to fit: what is asked on the way to the largest row, batch and model."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from lab.forecast import limits
from lab.forecast.resolve import resolve
from lab.forecast.target_device import TargetDevice
from lab.forecasts import How
from lab.spec import RunSpec


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
