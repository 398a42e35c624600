"""A run that begins with the result of another one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lab.paths import RunDir
from tests.answers import check


def test_only_a_result_of_the_same_model_and_method_can_be_the_start(
    trained: list[RunDir],
    make_spec: Callable[..., dict[str, Any]],
    tiny_model: Path,
    tmp_path: Path,
) -> None:
    full, lora = trained
    spec = make_spec("lora")

    def refusal(**changes: Any) -> str:
        problems = check(spec | {"init_from_run": f"run:{lora.id}"} | changes)["problems"]
        assert {problem["field"] for problem in problems} <= {"init_from_run"}, problems
        return " ".join(problem["message"] for problem in problems)

    assert refusal() == ""
    assert refusal(init_from_run="") == ""
    assert "(name, " in refusal(init_from_run=f"run:{full.id}") or "name" in refusal(
        init_from_run=f"run:{full.id}"
    )
    other = refusal(method={"name": "lora", "rank": 4})
    assert "another method (rank differ)" in other, "The same method with another option."
    copy = tmp_path / "copy"
    shutil.copytree(tiny_model, copy)
    assert refusal(model=str(copy)) == "", "The same weights elsewhere are the same base."
    file = copy / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert str(copy)[:40] in refusal(model=str(copy)) and "not the one" in refusal(model=str(copy))
    for name, says in (
        (f"base:{tiny_model}", "names no result"),
        (lora.id, "names no result"),
        (f"checkpoint:{lora.id}", "names no result"),
        ("run:20990101-000000-lora-zzzz", "There is no run"),
    ):
        assert says in refusal(init_from_run=name), name


def test_a_run_that_has_no_result_yet_is_no_start(
    trained: list[RunDir], make_spec: Callable[..., dict[str, Any]]
) -> None:
    run = trained[1]
    (run.artifact / "receipt.json").unlink()
    (problem,) = check(make_spec("lora") | {"init_from_run": f"run:{run.id}"})["problems"]
    assert problem["field"] == "init_from_run" and "no result yet" in problem["message"]


@pytest.mark.parametrize("model_folder", ["relative"])
def test_the_same_model_by_another_path_is_the_same(
    trained: list[RunDir],
    make_spec: Callable[..., dict[str, Any]],
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    model_folder: str,
) -> None:
    monkeypatch.chdir(tiny_model.parent)
    spec = make_spec("lora") | {
        "init_from_run": f"run:{trained[1].id}",
        "model": f"./{tiny_model.name}",
    }
    assert check(spec)["problems"] == []
