"""combine and push on the command line: what is checked first, confirmed, and printed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from lab import background_job, cli
from lab.background_job import JobRecord
from lab.export import combine, push
from lab.hub import credentials
from lab.paths import RunDir


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("LAB_HUB_OFFLINE", "0")
    credentials.give("hf_test")
    yield
    credentials.adopt(None)


def test_combine_takes_equal_weights_unless_told(
    trained: list[RunDir], monkeypatch: pytest.MonkeyPatch, lab_json: Callable[..., Any]
) -> None:
    wanted: list[combine.Combination] = []
    monkeypatch.setattr(combine, "check", wanted.append)
    combined = combine.CombinedResult("x", 4, 100, {"equal": True}, {"x": 1.0}, 0.0, "")
    monkeypatch.setattr(combine, "combine", lambda combination: combined)
    ids = [run.id for run in trained]
    assert lab_json("combine", *ids) == asdict(combined)
    lab_json("combine", *ids, "--weights", "0.7,-0.3", "--type", "ties", "--density", "0.2")
    assert wanted[0] == combine.Combination(tuple(ids), (0.5, 0.5))
    assert wanted[1] == combine.Combination(tuple(ids), (0.7, -0.3), "ties", 0.2)


def test_combine_refuses_before_anything_is_loaded(
    trained: list[RunDir], capsys: pytest.CaptureFixture[str]
) -> None:
    full, lora = trained
    for arguments, says in (
        ([lora.id], "2 to 8 different results"),
        ([lora.id, full.id], "Full fine-tuning leaves no adapter"),
        ([lora.id, full.id, "--weights", "a,b"], "are no numbers"),
        ([lora.id, full.id, "--weights", "nan,1"], "weight nan"),
        ([lora.id, "20260101-000000-lora-zzzz"], "There is no run"),
    ):
        assert cli.main(["combine", *arguments]) == 2
        assert says in capsys.readouterr().err, arguments


def test_push_is_confirmed_by_the_name(
    trained: list[RunDir],
    online: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    lora, started = trained[1], []

    def start(run: RunDir, name: str, what: str, **more: Any) -> None:
        started.append((run.id, name, what, more))

    monkeypatch.setattr(push, "start", start)
    result = {
        "url": "https://hub/me/x", "is_private": True, "commit": "c1", "verified": 7, "files": 7,
    }  # fmt: skip
    monkeypatch.setattr(
        background_job, "wait", lambda file, tell: JobRecord(finish="done", result=result)
    )
    command = ["push", lora.id, "me/x", "--private"]
    assert cli.main(command) == 2
    assert "Nobody is there to confirm the upload to me/x as private" in capsys.readouterr().err
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda prompt: "me/y")
    assert cli.main(command) == 2 and started == []
    out = capsys.readouterr()
    assert "another name" in out.err and "will be private" in out.out and "README.md" in out.out
    monkeypatch.setattr("builtins.input", lambda prompt: "me/x")
    assert cli.main(command) == 0
    assert started == [(lora.id, "me/x", "result", {"private": True, "update": False})]
    out = capsys.readouterr()
    assert "https://hub/me/x, private, commit c1" in out.out and "7 of 7 files" in out.out
    assert cli.main([*command, "--yes", "--update"]) == 0
    assert started[-1][3] == {"private": True, "update": True}
    failed = JobRecord(finish="failed", error="The Hub is gone.", hint="Wait.")
    monkeypatch.setattr(background_job, "wait", lambda file, tell: failed)
    assert cli.main([*command, "--yes"]) == 2
    assert "The Hub is gone." in capsys.readouterr().err


def test_push_needs_a_visibility_a_token_and_a_network(
    trained: list[RunDir], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lora = trained[1]
    with pytest.raises(SystemExit):
        cli.main(["push", lora.id, "me/x"])
    assert "--private --public" in capsys.readouterr().err
    assert cli.main(["push", lora.id, "me/x", "--public"]) == 2
    assert "HF_HUB_OFFLINE is set" in capsys.readouterr().err
    monkeypatch.setenv("LAB_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
    assert cli.main(["push", lora.id, "me/x", "--public", "--what", "gguf-F16"]) == 2
    assert "not made yet" in capsys.readouterr().err
    assert cli.main(["push", lora.id, "me/x", "--public"]) == 2
    assert "needs a token with the right to write" in capsys.readouterr().err


def test_waiting_for_a_job_tells_each_phase_once(
    lab_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [JobRecord(phase=phase) for phase in ("a", "a", "b")]
    records.append(JobRecord(phase="b", finish="done"))
    monkeypatch.setattr(background_job, "read", lambda file: records.pop(0))
    phases: list[str] = []
    assert background_job.wait(lab_home, phases.append, 0.0).finish == "done"
    assert phases == ["a", "b"]
    monkeypatch.setattr(background_job, "read", lambda file: None)
    assert background_job.wait(lab_home, phases.append, 0.0).finish == "interrupted"
