"""What of a machine will not work, told with what to do."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from lab.host import HostFacts
from lab.preflight import doctor

SOUND = HostFacts("Linux 6.1.0 x86_64", "3.12", "cpu", 2, 8 * 10**9, 4 * 10**9, 10**10, "/home")


@pytest.mark.parametrize(
    ("facts", "installed", "is_ready", "words"),
    [
        ({}, True, True, ""),
        ({"disk_free_bytes": 3_000_000_000}, True, True, ""),
        ({"disk_free_bytes": 2_999_000_000}, True, True, "Only 3.00 GB of disk are free."),
        ({"disk_free_bytes": 120_000_000}, True, True, "Only 120.00 MB of disk are free."),
        ({"system": "Darwin 24.0 arm64"}, True, True, "Darwin 24.0 arm64 is not supported"),
        ({"system": "Linux 6.1.0 aarch64"}, True, True, "Linux 6.1.0 aarch64 is not supported"),
        ({"system": "Darwin 24.0 x86_64"}, True, True, "Darwin 24.0 x86_64 is not supported"),
        ({}, False, True, "peft is not installed. Run 'make setup'."),
        ({}, True, False, "The built-in model Small is not installed. Run 'make setup' once."),
    ],
)
def test_each_lack_is_a_line_of_its_own(
    monkeypatch: pytest.MonkeyPatch, facts: Any, installed: bool, is_ready: bool, words: str
) -> None:
    model = SimpleNamespace(title="Small", is_ready=is_ready)
    monkeypatch.setattr(doctor.catalog, "BUILT_IN", [model])
    monkeypatch.setattr(
        doctor.importlib.util, "find_spec", lambda name: installed or name != "peft" or None
    )
    lines = doctor.problems(replace(SOUND, **facts))
    assert [line[: len(words)] for line in lines] == ([words] if words else [])
