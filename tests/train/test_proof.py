"""Each result is read back when it is written; what is wrong with it is told, never passed over."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lab import methods
from lab.atomic_files import read_object
from lab.methods import Context
from lab.methods.parts.adapter_files import CONFIG, WEIGHTS
from lab.models import weights
from lab.models.catalog import ModelSource
from lab.paths import RunDir
from lab.runs import record_reader
from lab.spec import RunSpec
from lab.train import checkpoint, model_card, proof
from tests.methods import tiny

ROWS = [list(range(3, 15)), list(range(40, 48))]
OPTIONS: dict[str, dict[str, Any]] = {
    "oft": {"block_size": 8},
    "lora_embeddings": {"new_tokens": ["<x>", "<y>"]},
    "adalora": {"rank": 4, "target_rank": 2},
    "bottleneck": {"size": 4},
}
WITH_LAB = {"lora_prompt", "bottleneck"}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The base on the disk, by width."""
    folders = {}
    for width in (32, 64):
        folders[width] = tmp_path_factory.mktemp("proof") / f"llama-{width}"
        tiny.make_model("llama", width).save_pretrained(folders[width])
    return folders


def result_of(name: str, bases: dict[int, Path], folder: Path) -> tuple[Any, RunSpec, Any, Any]:
    """(method, spec, trained model, source of its base) with the result in `folder`."""
    method = methods.get(name)
    value = {"method": {"name": name, **OPTIONS.get(name, {})}, "train": {"precision": "float32"}}
    spec = RunSpec.from_json(value)
    config, context = spec.method_config, Context(None, tiny.make_tokenizer())
    extra = method.load_kwargs(config)
    source = ModelSource("tiny", str(bases[64 if extra else 32]), local_only=True)
    method.extend_tokenizer(context.tokenizer, config)
    model = weights.load_model(source, torch.float32, **extra)
    method.prepare(model, config, context)
    model = method.apply(model, config, context)
    torch.manual_seed(5)
    with torch.no_grad():
        for weight in checkpoint.trainable(model).values():
            weight.add_(0.1 * torch.randn(weight.shape))
    method.save(model, folder)
    return method, spec, model, source


@pytest.mark.every_method
@pytest.mark.parametrize("name", methods.names())
def test_a_whole_result_is_proven_and_its_cards_lines_load_it(
    name: str, bases: dict[int, Path], tmp_path: Path
) -> None:
    method, spec, model, source = result_of(name, bases, tmp_path)
    expected = proof.answers(model, ROWS)
    lines = proof.loading_lines(method, spec, tmp_path, len(model.get_input_embeddings().weight))
    outcome = proof.prove(tmp_path, model, method, spec, source, ROWS)
    assert outcome.problem == "" and outcome.equal
    assert (outcome.rows, outcome.tokens) == (2, 20)
    is_quantised = bool(method.load_kwargs(spec.method_config))
    least = 5e-2 if is_quantised else 1e-3
    if name == "lora8bit":
        assert least < outcome.tolerance < 0.5, "inputs in 8 bits: its own answers differ by more"
    else:
        assert outcome.tolerance == least, "16 bits are computed with there"
    assert outcome.loaded_with == (
        "the lab" if name in WITH_LAB else "transformers" if name == "full" else "PEFT"
    ), "a result that PEFT alone cannot load is named in WITH_LAB"
    assert not any(weight.numel() for weight in model.parameters()), "its memory is free"
    states = [module.state for module in model.modules() if hasattr(module, "state")]
    assert not any(state.CB is not None or state.SCB is not None for state in states)
    assert bool(states) == (name == "lora8bit"), "whose layers compute from a second reference"
    text = model_card.card(method, spec, {"base": {"weights": "ab12"}}, {}, lines, outcome)
    assert "ab12" in text and method.title in text
    assert f"Tried with {outcome.loaded_with} when it was written" in text
    if not lines:
        assert "The lab loads it" in text.replace("\n", " ")
        return
    code = text.partition("```python\n")[2].partition("```")[0]
    ast.parse(code)
    own = "\n".join(code.splitlines()[2:])  # BASE and RESULT are the reader's
    names: dict[str, Any] = {"BASE": source.location, "RESULT": str(tmp_path)}
    exec(own, names)
    loaded = names["model"]
    difference = (proof.answers(loaded, ROWS) - expected).abs().max() / expected.std()
    assert float(difference) < (0.3 if method.load_kwargs(spec.method_config) else 1e-3)


def test_the_rounding_of_a_model_is_what_half_a_row_answers_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    trained = torch.randn(20, 30)
    rows: list[list[int]] = []

    def answers(model: Any, asked: list[list[int]]) -> torch.Tensor:
        rows.extend(asked)
        again = trained[: len(asked[0])].clone()
        again[2, 7] += 0.25
        return again

    monkeypatch.setattr(proof, "answers", answers)
    rounding = proof.own_rounding(None, ROWS[0], trained)
    assert rounding == pytest.approx(0.25 / float(trained.std()), rel=1e-5)
    assert rows == [ROWS[0][:6]]
    assert proof.own_rounding(None, [5], trained) == 0.0, "a row of one token has no half"


def test_a_model_that_rounds_by_everything_proves_nothing(
    bases: dict[int, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, spec, model, source = result_of("lora", bases, tmp_path)
    monkeypatch.setattr(proof, "own_rounding", lambda *_: float("inf"))
    changed(tmp_path, lambda tensors: [tensor.mul_(30) for tensor in tensors.values()])
    outcome = proof.prove(tmp_path, model, method, spec, source, ROWS)
    assert outcome.tolerance == proof.MOST and not outcome.equal


def changed(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def first_b(tensors: dict[str, torch.Tensor]) -> str:
    return next(name for name in tensors if "lora_B" in name)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda tensors: tensors[first_b(tensors)].mul_(1.002), "answers otherwise than what"),
        (lambda tensors: tensors.pop(first_b(tensors)), "answers otherwise than what"),
        (lambda tensors: tensors.update(extra=torch.ones(2)), "Nothing reads extra"),
    ],
    ids=["another number", "a missing tensor", "an unread tensor"],
)
def test_what_is_wrong_with_a_result_is_told(
    damage: Any, words: str, bases: dict[int, Path], tmp_path: Path
) -> None:
    method, spec, model, source = result_of("lora", bases, tmp_path)
    changed(tmp_path, damage)
    outcome = proof.prove(tmp_path, model, method, spec, source, ROWS)
    assert words in outcome.problem
    text = model_card.card(method, spec, {}, {}, ["pass"], outcome)
    assert f"**{outcome.problem}**" in text and "Tried with" not in text


def test_a_whole_model_holds_no_more_than_was_trained(
    bases: dict[int, Path], tmp_path: Path
) -> None:
    method, spec, model, source = result_of("full", bases, tmp_path)
    file = tmp_path / "model.safetensors"
    save_file(load_file(file) | {"extra": torch.ones(999)}, file, metadata={"format": "pt"})
    outcome = proof.prove(tmp_path, model, method, spec, source, ROWS)
    assert outcome.equal and outcome.problem == "Nothing reads 999 numbers of the result."


def test_rows_that_have_learned_nothing_are_counted(bases: dict[int, Path], tmp_path: Path) -> None:
    method, spec, model, source = result_of("lora", bases, tmp_path)
    name, weight = next((n, w) for n, w in model.named_parameters() if "lora_B" in n)
    with torch.no_grad():
        weight[:3] = 0.0
    method.save(model, tmp_path)
    outcome = proof.prove(tmp_path, model, method, spec, source, ROWS)
    assert outcome.equal and outcome.zero_rows == {name.replace(".default", ""): 3}
    assert "3 rows of" in outcome.problem


def test_a_result_that_no_library_reads_is_told_with_the_reason(
    bases: dict[int, Path], tmp_path: Path
) -> None:
    method, spec, model, source = result_of("lora", bases, tmp_path)
    settings = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps(settings | {"target_modules": ["nothing"]}))
    outcome = proof.prove(tmp_path, model, method, spec, source, ROWS)
    assert "could not be read back with PEFT" in outcome.problem and not outcome.equal


def test_the_lines_load_in_the_types_that_were_trained(tmp_path: Path) -> None:
    (tmp_path / CONFIG).touch()
    for precision, adapters, kind in (
        ("float32", "float32", "torch.float32"), ("mixed", "float32", "torch.float32"),
        ("bfloat16", "float32", "torch.bfloat16"), ("bfloat16", "bfloat16", "torch.bfloat16"),
    ):  # fmt: skip
        train = {"precision": precision, "adapter_precision": adapters}
        for name in ("lora", "full"):
            spec = RunSpec.from_json({"method": name, "train": train})
            code = "\n".join(proof.loading_lines(methods.get(name), spec, tmp_path, 96))
            assert f"dtype={kind}, use_safetensors=True" in code, (name, precision)
            is_narrow = name == "lora" and adapters == "bfloat16"
            assert ("autocast_adapter_dtype=False" in code) == is_narrow, (name, adapters)


def warnings_of(run: RunDir) -> list[str]:
    return [event["message"] for event in record_reader.events(run, "warning")]


def test_a_run_keeps_its_proof_and_its_card(
    work_here: Callable[..., RunDir], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = work_here("lora", train={"max_steps": 2, "sample_steps": 0, "save_steps": 0})
    receipt = read_object(run.artifact / "receipt.json") or {}
    assert receipt["proof"]["equal"] and receipt["proof"]["loaded_with"] == "PEFT"
    assert not [note for note in warnings_of(run) if "read back" in note]
    card = (run.artifact / "README.md").read_text()
    loss = record_reader.metrics(run, "eval")[-1]["eval/loss"]
    assert f"| Evaluation loss | {loss:.4f} |" in card and receipt["base"]["weights"] in card
    assert f"| Evaluation loss of the base | {record_reader.base_loss(run):.4f} |" in card
    assert f"| Steps | 2 |\n| Tokens | {receipt['tokens']} |" in card
    real = type(methods.get("lora")).save

    def broken(self: Any, model: Any, folder: Path) -> None:
        real(self, model, folder)
        changed(folder, lambda tensors: tensors.pop(first_b(tensors)))

    monkeypatch.setattr(type(methods.get("lora")), "save", broken)
    run = work_here(
        "lora", train={"max_steps": 2, "sample_steps": 0, "save_steps": 0, "learning_rate": 0.1}
    )
    assert not (read_object(run.artifact / "receipt.json") or {})["proof"]["equal"]
    assert [note for note in warnings_of(run) if "answers otherwise" in note]
