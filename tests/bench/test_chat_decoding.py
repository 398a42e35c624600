"""What the bench of chat measures, on models that take no time."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import chat_decoding
from lab.errors import LabError
from lab.paths import RunDir


def test_it_measures_memory_switches_and_equal_answers(
    trained: list[RunDir], tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_decoding, "TOKENS", 4)
    names = [f"base:{tiny_model}", f"run:{trained[1].id}"]
    report = chat_decoding.chat(names, 2, print)
    adapter = (trained[1].artifact / "adapter_model.safetensors").stat().st_size
    assert report.file_bytes == adapter
    assert report.tensor_bytes[names[1]] == pytest.approx(adapter, rel=0.1), "Without the base."
    figures = report.to_json()
    assert 0.98 < figures["memory_share"] < 1.02
    assert report.equal_answers == 2 * 2
    pairs = zip(report.together_s, report.apart_s, strict=True)
    shares = sorted(joined / apart for joined, apart in pairs)
    assert [figures["time_share"][name] for name in ("smallest", "largest")] == shares
    assert report.switch_s["pairs"] == chat_decoding.SWITCHES * 2
    with pytest.raises(LabError, match="two models or more of one base"):
        chat_decoding.chat(names[:1], 1, print)
