"""A result proves what it was made of, and is never half there."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from lab import methods
from lab.atomic_files import read_object
from lab.data import chat_template
from lab.data.batches import TokenSequence
from lab.errors import LabError
from lab.methods import Context
from lab.models import weights
from lab.models.catalog import BUILT_IN
from lab.paths import RunDir
from lab.spec import RunSpec
from lab.train import artifact
from tests.methods import tiny

OPTIONS = {
    "model": "some/model",
    "init_from_run": "run:20260101-000000-x-abcd",
    "method": {"name": "lora", "rank": 2},
    "data": {"system_prompt": "Be kind.", "loss_on": "completion"},
    "train": {"seed": 9},
}


def save(run: RunDir, tokenizer: Any, facts: dict[str, Any], **fields: Any) -> int:
    run.path.mkdir(parents=True, exist_ok=True)
    spec = RunSpec.from_json(OPTIONS | fields)
    method = methods.get("lora")
    model = method.apply(tiny.make_model("llama"), spec.method_config, Context(spec))
    return artifact.save(run, model, tokenizer, method, spec, facts)


def test_the_receipt_is_of_these_files_and_this_run(tmp_path: Path, small_tokenizer: Any) -> None:
    run = RunDir(tmp_path / "run")
    size = save(run, small_tokenizer, {"train_hash": "abc", "step": 12})
    files = [path for path in run.artifact.rglob("*") if path.is_file()]
    assert size == sum(file.stat().st_size for file in files)
    card = (run.artifact / "README.md").read_text()
    assert "# LoRA" in card and "PeftModel.from_pretrained(base, RESULT" in card
    assert "More Information Needed" not in card, "PEFT's card holds placeholders only"
    receipt = read_object(run.artifact / "receipt.json") or {}

    def digests(names: Any) -> dict[str, str]:
        folder = run.artifact
        return {n: hashlib.sha256((folder / n).read_bytes()).hexdigest() for n in names}

    assert receipt["weights"] == digests(["adapter_model.safetensors"])
    present = {file.name for file in files} & {
        "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
    }  # fmt: skip
    assert len(present) >= 2 and receipt["tokenizer_files"] == digests(present)
    assert (receipt["model"], receipt["init_from_run"]) == ("some/model", OPTIONS["init_from_run"])
    assert receipt["method"]["rank"] == 2
    assert (receipt["system_prompt"], receipt["loss_on"]) == ("Be kind.", "completion")
    assert (receipt["seed"], receipt["train_hash"], receipt["step"]) == (9, "abc", 12)
    assert (receipt["end_token"], receipt["pad_token"]) == (tiny.END, tiny.END)
    terms = chat_template.fingerprint(small_tokenizer, "Be kind.", "completion")
    assert receipt["template_hash"] == receipt["lock"]["hash"] == terms


def test_the_card_names_the_licence_of_a_built_in_base(
    tmp_path: Path, small_tokenizer: Any
) -> None:
    run, known = RunDir(tmp_path / "run"), BUILT_IN[0]
    save(run, small_tokenizer, {}, model=f"builtin:{known.name}")
    assert f"made of it: {known.license}." in (run.artifact / "README.md").read_text()


def test_a_result_that_cannot_be_written_leaves_the_one_before(
    tmp_path: Path, small_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDir(tmp_path / "run")
    save(run, small_tokenizer, {"step": 1})
    before = (run.artifact / "receipt.json").read_bytes()
    saved = type(methods.get("lora")).save

    def half(self: Any, model: Any, folder: Path) -> None:
        saved(self, model, folder)
        assert run.artifact.is_dir(), "the old result is there until the new one is whole"
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(type(methods.get("lora")), "save", half)
        with pytest.raises(OSError, match="No space"):
            save(run, small_tokenizer, {"step": 2})
    assert (run.artifact / "receipt.json").read_bytes() == before
    assert [path.name for path in run.path.iterdir()] == ["artifact"], (
        "nothing half written is left"
    )
    save(run, small_tokenizer, {"step": 3})
    assert (read_object(run.artifact / "receipt.json") or {})["step"] == 3


def test_every_file_is_on_the_disk_before_the_result_has_its_name(
    tmp_path: Path, small_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that loses power leaves a whole result or none."""
    run, done = RunDir(tmp_path / "run"), list[str]()
    replace = artifact.os.replace

    def note_replace(source: Any, target: Any) -> None:
        done.append(Path(target).name)
        replace(source, target)

    def note_sync(descriptor: int) -> None:
        done.append(Path(f"/proc/self/fd/{descriptor}").resolve().name)

    monkeypatch.setattr(artifact.os, "fsync", note_sync)
    monkeypatch.setattr(artifact.os, "replace", note_replace)
    save(run, small_tokenizer, {})
    named = done.index("artifact")
    assert {file.name for file in run.artifact.iterdir()} <= set(done[:named])
    assert done[-1] == "run", "and so is the name"


@pytest.fixture
def result_of(tmp_path: Path) -> Callable[..., tuple[Any, Any, Path]]:
    """(model to train, another tree over its base, folder of a result with noise in it)."""

    def make(name: str, **options: Any) -> tuple[Any, Any, Path]:
        spec = RunSpec.from_json({"method": {"name": name, **options}})
        method = methods.get(name)
        done = method.apply(tiny.make_model("neox"), spec.method_config, Context(spec))
        torch.manual_seed(4)
        with torch.no_grad():
            for weight in done.parameters():
                if weight.requires_grad:
                    weight.copy_(torch.randn(weight.shape))
        folder = tmp_path / "result"
        folder.mkdir()
        method.save(done, folder)
        base = tiny.make_model("neox")
        twin = weights.share_weights(base)
        model = method.apply(base, spec.method_config, Context(spec))
        return model, twin, folder

    return make


@pytest.mark.parametrize(
    ("name", "options"),
    [("lora", {"bias": "all"}), ("top_layers_lora", {}), ("lora", {"rank": 2}), ("full", {})],
)
def test_training_on_begins_with_every_number_of_the_result(
    result_of: Any, name: str, options: dict[str, Any]
) -> None:
    model, twin, folder = result_of(name, **options)
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    artifact.load_initial_weights(model, twin, methods.get(name), folder)
    torch.manual_seed(4)
    now = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    assert now.keys() == trained, "as much trains as before"
    for place, weight in now.items():
        assert torch.allclose(weight.float(), torch.randn(weight.shape), atol=0.02), place


def test_a_result_that_lacks_a_weight_is_refused_by_name(result_of: Any) -> None:
    model, twin, folder = result_of("lora", rank=2)
    model.extra = nn.Parameter(torch.ones(3))
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    with pytest.raises(LabError, match="The result holds no extra: LoRA"):
        artifact.load_initial_weights(model, twin, methods.get("lora"), folder)
    left = dict(model.named_parameters())
    assert all(torch.equal(tensor, left[n]) for n, tensor in before.items() if "lora_" in n)


@pytest.mark.parametrize(
    ("held_out", "expected"),
    [
        ([[7, 8]], [[7, 8]]),
        ([], [[1, 2]]),
        ([[7] * 65, [8] * 64, [9]], [[7] * 64, [8] * 64]),
    ],
    ids=["held out", "none held out", "long ones"],
)
def test_a_result_is_proven_on_the_first_rows_that_were_not_learned(
    tmp_path: Path, held_out: list[list[int]], expected: list[list[int]]
) -> None:
    held, train = (
        [TokenSequence(ids, ids, (len(ids),)) for ids in rows] for rows in (held_out, [[1, 2]])
    )
    data: Any = SimpleNamespace(train=train, held_out=held)
    source: Any = None
    assert artifact.proving(RunDir(tmp_path), source, data, print).rows == expected
