"""The card of a result: what the Hub reads of it, what a table may hold, and how it is loaded."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lab import methods
from lab.spec import RunSpec
from lab.train import model_card
from lab.train.proof import ResultProof

PEFT_LINES = ["base = ...", "model = PeftModel.from_pretrained(base, RESULT)"]


def card(lines: list[str], *, figures: Any = None, licence: str = "", **fields: Any) -> str:
    spec = RunSpec.from_json({"method": {"name": "lora", "rank": 4}, **fields})
    receipt = {
        "base": {"weights": "ab12", "commit": None}, "train_hash": "cd34",
        "system_prompt": spec.data.system_prompt,
    }  # fmt: skip
    return model_card.card(
        methods.get("lora"), spec, receipt, figures or {}, lines, ResultProof("PEFT", equal=True,
        largest_difference=1.5e-6, tolerance=1e-3, rows=2, tokens=40), licence,
    )  # fmt: skip


def header(text: str) -> dict[str, Any]:
    lines = text.split("---\n")[1].splitlines()
    return {key: json.loads(value) for key, _, value in (line.partition(": ") for line in lines)}


@pytest.mark.parametrize(
    ("lines", "library"),
    [
        (PEFT_LINES, "peft"),
        (["model = AutoModelForCausalLM.from_pretrained(RESULT)"], "transformers"),
        ([], "finetune-lab"),
    ],
)
def test_the_hub_is_told_who_loads_it(lines: list[str], library: str) -> None:
    text = card(lines, model="builtin:wren")
    assert header(text) == {
        "base_model": "builtin:wren",
        "library_name": library,
        "pipeline_tag": "text-generation",
        "tags": ["finetune-lab", "lora"],
    }
    assert ("BASE = 'wren'" in text) == bool(lines), "the base's own name"
    assert (model_card.LAB_ONLY in text) != bool(lines)
    assert "2 rows (40 tokens)" in text and "within 1.5e-06 of" in text


def test_the_table_holds_what_was_chosen_and_measured() -> None:
    figures = {"Evaluation loss": 1.23456, "Tokens": 1_234_567}
    text = card(
        PEFT_LINES, figures=figures, licence="Apache-2.0", train={"seed": 7},
        data={"system_prompt": "Be kind.", "loss_on": "completion"},
    )  # fmt: skip
    rows = dict(
        line.strip("| ").split(" | ", 1) for line in text.splitlines() if line.startswith("| ") and
        line != "| | |"
    )  # fmt: skip
    assert rows["Options"] == "rank 4", "what is no default"
    assert rows["Method"].startswith("LoRA (arXiv:")
    assert (rows["Evaluation loss"], rows["Tokens"]) == ("1.2346", "1,234,567")
    assert (rows["Seed"], rows["Loss on"]) == ("7", "completion")
    assert (rows["Hash of the base's weights"], rows["Hash of the training rows"]) == (
        "ab12", "cd34",
    )  # fmt: skip
    assert rows["System prompt"] == "Be kind." and "Commit of the base" not in rows
    assert "made of it: Apache-2.0." in text
    assert "| Options | defaults |" in card(PEFT_LINES, method="lora")


def test_names_are_drawn_as_they_are() -> None:
    text = card(PEFT_LINES, name="a|b `c` <img>  d", data={"dataset": "x|y.jsonl"})
    assert "\n# a\\|b 'c' &lt;img> d\n" in text
    assert "| Data | `x\\|y.jsonl` |" in text
