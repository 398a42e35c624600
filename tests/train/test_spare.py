"""A worker that has imported its libraries and waits: for one run, or for the end of its input."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from lab.paths import RunDir
from lab.train import __main__ as main


def test_a_spare_worker_does_the_run_that_it_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDir(tmp_path)
    run.log.write_text("of the attempt before\n")
    worked: list[Any] = []
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{tmp_path}\n{{}}\n"))
    monkeypatch.setattr(main.credentials, "read_line", lambda file: worked.append(file.readline()))
    monkeypatch.setattr(os, "dup2", lambda source, target: worked.append(target))
    monkeypatch.setattr(main, "work", lambda run: worked.append(run.path) or 7)
    assert main.spare() == 7, "the worker's exit code"
    assert worked == ["{}\n", 1, 2, tmp_path], "access to the Hub, output and errors, then the run"
    assert run.log.read_text() == "of the attempt before\n", "the log goes on"


def test_without_a_supervisor_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    monkeypatch.setattr(main, "work", lambda run: pytest.fail("there is no run"))
    assert main.spare() == 0
