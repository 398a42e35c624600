"""Results measured on held-out rows, merged and exported, each under the template lock."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lab.chat import models as chat_models
from lab.data import template_lock
from lab.errors import LabError
from lab.export import merge as merging
from lab.export import merge_proof
from lab.paths import RunDir
from lab.runs import export_import, record_reader


def test_a_merged_model_is_plain_and_answers_as_the_result(
    lab_json: Callable[..., Any], trained: list[RunDir], tmp_path: Path
) -> None:
    run = trained[1]
    answer = lab_json("merge", run.id, "--out", str(tmp_path / "merged"))
    assert answer["bytes"] > 1e6 and answer["largest_difference"] < 1e-3
    names = {file.name for file in (tmp_path / "merged").iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "receipt.json"} <= names
    assert not any(name.startswith("adapter") for name in names)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    proof = json.loads((tmp_path / "merged" / "receipt.json").read_text())
    assert proof["merged_from"] == run.id
    template_lock.check_tokenizer(proof["lock"], tokenizer)
    loaded = chat_models.load(chat_models.parse(f"run:{run.id}"))
    ids = torch.tensor([tokenizer("What is 2 plus 2?")["input_ids"]])
    with torch.inference_mode():
        apart = (model(ids).logits - loaded.model(ids).logits).abs().max()
    assert apart < 1e-4


def test_what_cannot_be_merged_is_refused_and_leaves_nothing(
    trained: list[RunDir], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full, lora = trained
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(LabError, match="the result is a whole model"):
        merging.merge(full, out / "merged")
    with pytest.raises(LabError, match="exists"):
        merging.merge(lora, out)
    tight = replace(merge_proof.BOUNDS["float32", "float32"], spread=1e-12)
    monkeypatch.setitem(merge_proof.BOUNDS, ("float32", "float32"), tight)
    with pytest.raises(LabError, match="answers differently"):
        merging.merge(lora, out / "merged")
    assert list(out.iterdir()) == []


def test_evaluation_gives_the_runs_own_loss(
    lab_json: Callable[..., Any], trained: list[RunDir], chats: Path
) -> None:
    full, lora = trained
    base = f"base:{chat_models.parse(f'run:{full.id}').base}"
    rows = lab_json("evaluate", f"run:{full.id}", f"run:{lora.id}", base)["models"]
    for row, run in zip(rows, trained, strict=False):
        measured = record_reader.metrics(run, "eval")[-1]["eval/loss"]
        assert row["loss"] == pytest.approx(measured, abs=1e-5)
    assert rows[2]["loss"] > max(row["loss"] for row in rows[:2]), "training lowered it"
    assert len({(row["tokens"], row["data"]) for row in rows}) == 1
    whole = lab_json("evaluate", f"run:{lora.id}", "--dataset", str(chats))["models"]
    assert whole[0]["rows"] == 24 > rows[0]["rows"]


def test_evaluation_refuses_other_terms(
    trained: list[RunDir], work_here: Callable[..., RunDir]
) -> None:
    from lab.evals.held_out import evaluate

    other = work_here("lora", data={"system_prompt": "Be brief."}, train={"max_steps": 2})
    named = [chat_models.parse(f"run:{run.id}") for run in (trained[0], other)]
    with pytest.raises(LabError, match=r"the system prompt 'Be brief.'; these rows have") as caught:
        evaluate(named)
    assert "From token" in str(caught.value)
    assert len(evaluate(named[1:])) == 1, "by itself its own terms hold"
    with pytest.raises(LabError, match="no held-out rows"):
        evaluate([chat_models.parse(f"base:{named[0].base}")])


@pytest.mark.parametrize("way", ["evaluate", "merge", "export"])
def test_a_changed_template_is_refused(trained: list[RunDir], tmp_path: Path, way: str) -> None:
    from lab.evals.held_out import evaluate

    run, out = trained[1], tmp_path / "out"
    out.mkdir()
    ways: dict[str, Callable[[], Any]] = {
        "evaluate": lambda: evaluate([chat_models.parse(f"run:{run.id}")]),
        "merge": lambda: merging.merge(run, out / "merged"),
        "export": lambda: export_import.export(run, out / "run.zip"),
    }
    file = run.artifact / "chat_template.jinja"
    text = file.read_text()
    file.write_text(text.replace("<|im_end|>", "<|im_end|>!"))
    with pytest.raises(LabError, match=r"of this result (differs|is not the file)"):
        ways[way]()
    assert list(out.iterdir()) == []
    file.write_text(text)
    assert ways[way]()
