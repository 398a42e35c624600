"""The plain script learns the same tokens, in the same batches, at the same rate as the lab."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lab.data import prepare
from lab.errors import LabError
from lab.export.script import script
from lab.models import weights
from lab.models.catalog import ModelSource
from lab.spec import RunSpec
from tests.conftest import write_rows

TURNS = [
    [("user", "What is one?"), ("assistant", "It is 1.")],
    [("user", "Hi"), ("assistant", "Hello!"), ("user", "And two?"), ("assistant", "It is 2.")],
    [("system", "Be odd."), ("user", "Three?"), ("assistant", "  3 it is  ")],
    [("user", "A long question " * 12), ("assistant", "A long answer " * 12)],
    [("user", "Who?"), ("assistant", "Me.")],
    [("user", "When?"), ("assistant", "Now.")],
]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    file = tmp_path / "turns.jsonl"
    write_rows(file, [{"messages": [{"role": r, "content": c} for r, c in one]} for one in TURNS])
    return file


@pytest.fixture
def run_script(
    tiny_model: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., dict[str, Any]]:
    """`run_script(spec)`: what the script has made when it ends, without training."""

    def run(spec: dict[str, Any], system: str = "Be kind.", data: Path = rows) -> dict[str, Any]:
        monkeypatch.chdir(tmp_path)
        file = tmp_path / "train.py"
        text = script(RunSpec.from_json(spec), str(tiny_model), str(data), system)
        file.write_text(text.partition("planned(STEPS)\nlosses")[0])
        return runpy.run_path(str(file))

    return run


def spec_of(method: Any = "full", data: Any = {}, **train: Any) -> dict[str, Any]:  # noqa: B006
    return {
        "method": method,
        "data": {"max_length": 48, "eval_fraction": 0.0, "packing": "off", **data},
        "train": train,
    }


@pytest.mark.parametrize("loss_on", ["assistant", "completion", "all"])
@pytest.mark.parametrize("system", ["Be kind.", ""])
def test_its_tokens_and_their_mask_are_the_labs(
    run_script: Callable[..., Any], rows: Path, tiny_model: Path, loss_on: str, system: str
) -> None:
    made = run_script(spec_of(data={"loss_on": loss_on}), system)["rows"]
    value = spec_of(data={"loss_on": loss_on, "dataset": str(rows), "packing": "off"})
    value["data"]["system_prompt"] = system
    tokenizer = weights.load_tokenizer(ModelSource("tiny", str(tiny_model), local_only=True))
    ours = prepare.prepare(RunSpec.from_json(value), tokenizer).train
    expected = {
        tuple(row.ids[0] if row.ids and isinstance(row.ids[0], list) else row.ids): tuple(
            row.labels
        )
        for row in lab_rows(value, tokenizer)
    }
    assert len(made) == len(expected) == len(ours)
    for row in made:
        ids, labels = tuple(row["input_ids"]), tuple(row["labels"])
        assert ids in expected, "The same ids, cut at the same length."
        # nothing comes before the first token, so that neither of the two ever counts it
        counted = [place for place, label in enumerate(labels) if place and label != -100]
        wanted = [place for place, label in enumerate(expected[ids]) if place and label != -100]
        assert counted == wanted, f"{loss_on}: the loss counts the same tokens."
        assert all(labels[place] == ids[place] for place in counted)


def lab_rows(value: dict[str, Any], tokenizer: Any) -> list[Any]:
    """The lab's own tokens and labels of each row that it learns from."""
    from lab.data import chat_template
    from lab.data.example_reader import ExampleReader, ReadOptions

    data = value["data"]
    chat_template.set_chat_template(tokenizer, "auto")
    return [
        piece
        for example in ExampleReader(Path(data["dataset"]), ReadOptions())
        for piece in chat_template.tokenize(
            example, tokenizer, data["system_prompt"], data["loss_on"], data["max_length"], "right"
        )
        if piece.num_loss_tokens
    ]


def test_a_rate_of_auto_is_the_methods_and_the_types_are_the_specs(
    run_script: Callable[..., Any],
) -> None:
    import torch

    from lab import methods

    result = run_script(spec_of({"name": "lora", "rank": 3}, precision="bfloat16"))
    model = result["model"]
    assert result["LEARNING_RATE"] == methods.get("lora").default_lr
    assert model.get_base_model().dtype == torch.bfloat16 and result["AUTOCAST"]
    assert model.peft_config["default"].r == 3
    for precision, mixed in (("mixed", True), ("float32", False)):
        result = run_script(spec_of(precision=precision))
        assert result["model"].dtype == torch.float32, precision
        assert result["AUTOCAST"] is mixed, precision


def test_held_out_rows_do_not_train_and_only_the_first_rows_are_read(
    run_script: Callable[..., Any],
) -> None:
    result = run_script(spec_of(data={"eval_fraction": 0.5, "max_examples": 4, "max_length": 256}))
    trains, held = result["rows"], result["held_out"]
    assert len(trains) == len(held) == 2, "Half of the first four rows each."
    assert not [row for row in trains if row in held]
    assert run_script(spec_of())["held_out"] == []


def test_padding_is_neither_read_nor_learned(run_script: Callable[..., Any]) -> None:
    result = run_script(spec_of())
    short, long = sorted(result["rows"], key=lambda row: len(row["input_ids"]))[
        :: len(result["rows"]) - 1
    ]
    batch = result["collate"]([short, long])
    count, width = len(short["input_ids"]), len(long["input_ids"])
    assert batch["input_ids"].shape[1] == width > count
    assert batch["position_ids"][0].tolist() == list(range(width)), "the padding comes last"
    assert set(batch["labels"][0, count:].tolist()) == {-100}
    assert batch["labels"][1].tolist() == long["labels"]


@pytest.mark.parametrize(
    ("section", "setting", "name"),
    [
        ("data", {"on_invalid_row": "skip"}, "on_invalid_row"),
        ("train", {"early_stopping": 2}, "early_stopping"),
        ("train", {"activation_checkpointing": "on"}, "activation_checkpointing"),
        ("train", {"compile": "on"}, "compile"),
    ],
)
def test_what_it_leaves_out_it_says(section: str, setting: dict[str, Any], name: str) -> None:
    plain = script(RunSpec.from_json(spec_of()), "m", "d.jsonl", "")
    assert "Left out" not in plain
    text = script(RunSpec.from_json({"method": "full", section: setting}), "m", "d.jsonl", "")
    assert f"Left out: {name}" in text.split('"""')[1]


def test_a_method_that_is_the_labs_own_has_no_plain_script() -> None:
    with pytest.raises(LabError, match="no plain script for Bottleneck"):
        script(RunSpec.from_json({"method": "bottleneck"}), "m", "d.jsonl", "")
