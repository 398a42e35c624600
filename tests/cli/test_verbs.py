"""Every verb's JSON has the shape that other programs rely on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lab import cli, paths
from lab.paths import RunDir
from lab.runs import index


@pytest.fixture
def lab(lab_json: Callable[..., Any]) -> Callable[..., Any]:
    return lab_json


def test_catalogues(lab: Callable[..., Any]) -> None:
    assert lab("models")["models"][0]["id"] == "builtin:smollm2-135m-instruct"
    assert {row["id"] for row in lab("datasets")["datasets"]} >= {"builtin:persona-chats"}
    found = {row["name"]: row for row in lab("methods")["methods"]}
    rank = next(option for option in found["lora"]["options"] if option["name"] == "rank")
    assert (rank["type"], rank["default"], rank["min"]) == ("integer", 16, 1) and rank["help"]
    assert found["lora"]["supports"]["merge"] and found["full"]["options"]


def test_doctor(lab: Callable[..., Any], lab_home: Path) -> None:
    (lab_home / "machine.json").unlink()
    facts = lab("doctor")
    assert facts["missing"] == [] and facts["cpu_peak_flops"] > 1e9
    stored = json.loads((lab_home / "machine.json").read_text())
    assert stored["cpu_peak_flops"] == facts["cpu_peak_flops"]


def test_estimate(lab: Callable[..., Any], tiny_model: Path) -> None:
    ask = ["estimate", "--model", str(tiny_model), "--seq-len", "64", "--batch-size", "2"]
    full = lab(*ask, "--method", "full", "--gpu-gb", "80")  # a GPU: bf16
    assert full["trainable"] == full["parameters"] and full["fits"] is True
    assert full["bytes"]["weights"] == 2 * full["parameters"]
    assert full["bytes"]["optimizer"] == 2 * full["bytes"]["gradients"] == 4 * full["parameters"]
    assert full["peak_bytes"] == full["phases"][full["peak_phase"]] == max(full["phases"].values())
    assert full["peak_bytes"] == sum(full["at_peak"].values())
    assert full["source"] == "shadow" and full["operation"]
    assert lab(*ask, "--method", "full", "--gpu-gb", "0.05")["fits"] is False
    lora = lab(*ask, "--method", "lora", "--set", "method.rank=8", "--formula")
    assert lora["trainable"] < full["trainable"] and lora["source"] == "outline"
    assert lora["has_margin"] and lora["device"] == "cpu"  # this machine, without a GPU


def test_the_life_of_a_run(
    lab: Callable[..., Any],
    make_spec: Callable[..., dict[str, Any]],
    work_here: Callable[..., RunDir],
    tmp_path: Path,
) -> None:
    file = tmp_path / "spec.json"
    file.write_text(json.dumps(make_spec("lora")))
    started = lab("start", str(file), "--wait", "--set", "train.max_steps=6")
    assert started["state"] == "done"
    run_id = started["id"]
    shown = lab("show", run_id)
    assert shown["spec"]["train"]["max_steps"] == 6
    assert shown["status"]["state"] == "done" and shown["last"]["train"]["step"] == 6
    assert shown["result"]["summary"]["planned_steps"] == 6
    paths.run_dir(run_id).log.write_text("first\nsecond\n")
    assert lab("logs", run_id) == {"id": run_id, "log": "first\nsecond\n"}
    assert [row["id"] for row in lab("runs")["runs"]] == [run_id]
    lab("rename", run_id, "renamed")
    assert lab("runs")["runs"][0]["name"] == "renamed"
    labelled = lab("label", run_id, "--tags", "a, b", "--notes", "fine", "--archive")
    assert (labelled["tags"], labelled["archived"]) == (["a", "b"], True)
    other = work_here("full", train={"max_steps": 6})
    checkpoints = lab("checkpoints", other.id, "--pin", "4")["checkpoints"]
    assert [(row["step"], row["pinned"]) for row in checkpoints] == [(4, True)]
    exported = lab("export", other.id, str(tmp_path / "run.zip"))
    assert lab("import", exported["file"])["id"] != other.id
    assert lab("queue", "pause", "--at-once", "2")["settings"]["at_once"] == 2
    assert lab("queue", "continue")["settings"]["paused"] is False
    compared = lab("compare", run_id, other.id, "--by", "tokens")
    assert {row["method"] for row in compared["runs"]} == {"lora", "full"}
    assert {"id", "seed", "state", "trainable", "tokens_per_s", "artifact_bytes"} <= set(
        compared["runs"][0]
    )
    model = f"base:{shown['spec']['model']}"
    answers = lab(
        "chat", model, f"run:{run_id}", f"run:{other.id}", f"run:{other.id}@4",
        "--prompt", "What is 2 plus 2?", "--max-new-tokens", "5",
    )["answers"]  # fmt: skip
    assert answers[0]["model"] == model
    assert len({answer["receipt"]["prompt_hash"] for answer in answers}) == 1
    assert all(1 <= len(answer["token_ids"]) <= 5 for answer in answers)
    assert all(answer["finish"] in ("stop", "length") for answer in answers)
    assert lab("delete", run_id)["state"] == "deleted"
    assert other.id in [row["id"] for row in lab("runs")["runs"]]


def test_answers_repeat_with_the_seed(lab: Callable[..., Any], tiny_model: Path) -> None:
    ask = ["chat", f"base:{tiny_model}", "--prompt", "Hi", "--max-new-tokens", "8"]
    sampled = [*ask, "--temperature", "1.0", "--seed", "3"]
    first, again = lab(*sampled)["answers"][0], lab(*sampled)["answers"][0]
    assert first["token_ids"] == again["token_ids"]
    other = lab(*ask, "--temperature", "1.0", "--seed", "4")["answers"][0]
    assert other["token_ids"] != first["token_ids"]


def test_the_demo(
    lab: Callable[..., Any],
    make_spec: Callable[..., dict[str, Any]],
    tiny_model: Path,
    queue_here: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The main job's own code, on a small model."""
    from lab.cli import demo

    monkeypatch.setattr(demo, "MODEL", str(tiny_model))
    monkeypatch.setattr(demo, "spec", lambda method: make_spec(method, train={"max_steps": 3}))
    answer = lab("demo")
    assert [row["state"] for row in answer["runs"]] == ["done", "done"]
    assert [row["method"] for row in answer["runs"]] == ["full", "lora"]
    assert len(answer["answers"]) == 3 and answer["unequal"] == []


def test_people_get_tables(
    capsys: pytest.CaptureFixture[str], trained: list[RunDir], tiny_model: Path
) -> None:
    run = trained[1]
    index.rename(run, "[bold] [red]odd")
    chat = ["chat", f"base:{tiny_model}", "--prompt", "[/INST] hi", "--max-new-tokens", "2"]
    assert cli.main(chat) == 0
    assert "[/INST] hi" in capsys.readouterr().out
    assert cli.main(["runs"]) == 0 and "[bold] [red]odd" in capsys.readouterr().out
    for arguments in (["runs"], ["show", run.id], ["compare", run.id], ["models"], ["methods"]):
        assert cli.main(arguments) == 0
        assert capsys.readouterr().out.strip()


def test_a_comparison_is_written_as_a_report(lab_json: Any, tmp_path: Path) -> None:
    from tests.compare.recorded import record

    runs = [record("aaaa", "A"), record("bbbb", "B", "full", losses=(3.0, 2.5))]
    file = tmp_path / "report.html"
    answer = lab_json("compare", *(run.id for run in runs), "--html", str(file))
    assert answer["html"] == str(file) and answer["verdict"]["best"] == runs[0].id
    page = file.read_text()
    assert "A has the lowest evaluation loss: 2.41" in page and "Plotly.newPlot" in page
    assert cli.main(["compare", runs[0].id, runs[1].id, "--html", str(file)]) == 2
