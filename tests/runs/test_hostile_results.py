"""Results that are damaged or were put there by somebody else: every door says so, and none reads a
pickle or ends in a traceback."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lab import paths
from lab.chat import models as chat_models
from lab.errors import LabError
from lab.evals import held_out
from lab.export import merge
from lab.paths import RunDir
from lab.runs import export_import
from lab.train import checkpoint
from tests.models import hostile

ADAPTER = "adapter_model.safetensors"


def _remove(run: RunDir) -> None:
    (run.artifact / ADAPTER).unlink()


def _empty(run: RunDir) -> None:
    (run.artifact / ADAPTER).write_bytes(b"")


def _huge_rank(run: RunDir) -> None:
    hostile.change(run.artifact / "adapter_config.json", r=10**9)


def _unknown_type(run: RunDir) -> None:
    hostile.change(run.artifact / "adapter_config.json", peft_type="EVIL")


def _no_config(run: RunDir) -> None:
    (run.artifact / "adapter_config.json").write_text("[]")


def _other_shapes(run: RunDir) -> None:
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    hostile.rewrite(run.artifact / ADAPTER, **{name: torch.zeros(2, 2)})


def _linked(run: RunDir) -> None:
    (run.artifact / ADAPTER).rename(run.artifact / "other.safetensors")
    (run.artifact / ADAPTER).symlink_to("other.safetensors")


@pytest.mark.parametrize(
    "damage",
    [_remove, _empty, _huge_rank, _unknown_type, _no_config, _other_shapes, _linked],
)
def test_a_damaged_result(
    trained: list[RunDir],
    make_spec: Callable[..., dict[str, Any]],
    chats: Path,
    tmp_path: Path,
    damage: Callable[[RunDir], None],
) -> None:
    from tests.answers import check

    run = trained[1]
    hostile.plant(run.artifact, tmp_path / "a pickle was read")
    damage(run)
    named = chat_models.parse(f"run:{run.id}")
    doors: list[Callable[[], Any]] = [
        lambda: chat_models.load(named),
        lambda: merge.merge(run, tmp_path / "merged"),
        lambda: held_out.evaluate([named], str(chats)),
    ]
    for door in doors:
        with pytest.raises(LabError):
            door()
    (problem,) = check(make_spec() | {"init_from_run": f"run:{run.id}"})["problems"]
    assert problem["field"] == "init_from_run" and "cannot be begun with" in problem["message"]
    assert not (tmp_path / "a pickle was read").exists(), "a pickle was read"
    assert not (tmp_path / "merged").exists(), "nothing half-merged is left"


def test_a_result_whose_tokenizer_names_something_else(
    trained: list[RunDir], tmp_path: Path
) -> None:
    for run in trained:
        hostile.plant(run.artifact, tmp_path / "a pickle was read")
        file = run.artifact / "tokenizer_config.json"
        hostile.change(file, tokenizer_class="AutoModelForCausalLM")
        with pytest.raises(LabError, match="which is not a tokenizer"):
            chat_models.load(chat_models.parse(f"run:{run.id}"))
    assert not (tmp_path / "a pickle was read").exists(), "a pickle was read"


def test_a_damaged_result_is_neither_exported_nor_imported(
    trained: list[RunDir], tmp_path: Path
) -> None:
    import zipfile

    run = trained[1]
    whole = export_import.export(run, tmp_path / "whole.zip")
    _empty(run)
    with pytest.raises(LabError, match="is not a readable safetensors file"):
        export_import.export(run, tmp_path / "damaged.zip")
    assert sorted(file.name for file in tmp_path.glob("*.zip*")) == ["whole.zip"]
    before = sorted(paths.runs().iterdir())
    for content in (b"", b"PK" * 99, hostile.raw(b"{}", length=2**60)):
        # as a stranger writes it: every hash of the manifest is right
        target = tmp_path / "hostile.zip"
        with zipfile.ZipFile(whole) as source, zipfile.ZipFile(target, "w") as archive:
            manifest = json.loads(source.read(export_import.MANIFEST))
            manifest["files"][f"artifact/{ADAPTER}"] = {
                "bytes": len(content),
                "sha256": hashlib.sha256(content).hexdigest(),
            }
            for name in source.namelist():
                data = source.read(name)
                data = content if name.endswith(ADAPTER) else data
                archive.writestr(
                    name, json.dumps(manifest) if name == export_import.MANIFEST else data
                )
        with pytest.raises(LabError, match="is not a readable safetensors file"):
            export_import.import_run(target)
        assert sorted(paths.runs().iterdir()) == before, "the import leaves nothing"


def forge(saved: Path, name: str, content: bytes) -> None:
    """Another content, with the manifest made to match it."""
    (saved / name).write_bytes(content)
    manifest = json.loads((saved / "manifest.json").read_text())
    digest = hashlib.sha256(content).hexdigest()
    manifest["files"][name] = {"bytes": len(content), "sha256": digest}
    (saved / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("name", ["trainable", "optimizer", "extra"])
@pytest.mark.parametrize("content", [b"", b"PK" * 99, hostile.raw(b"{}", length=2**60)])
def test_a_checkpoint_with_a_matching_manifest_and_no_tensors(
    trained: list[RunDir], name: str, content: bytes
) -> None:
    saved = trained[1].checkpoints / "step-8"
    forge(saved, f"{name}.safetensors", content)
    with pytest.raises(LabError, match="is not a readable safetensors file"):
        checkpoint.verify(saved)
    with pytest.raises(LabError):
        chat_models.load(chat_models.parse(f"run:{trained[1].id}@8"))


def test_a_checkpoint_of_other_tensors(trained: list[RunDir]) -> None:
    run = trained[1]
    saved = run.checkpoints / "step-8"
    file = saved / "trainable.safetensors"
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight"
    hostile.rewrite(file, **{name: torch.zeros(2, 2)})
    forge(saved, file.name, file.read_bytes())
    with pytest.raises(LabError, match=r"holds '.*' \(2, 2\), the model"):
        chat_models.load(chat_models.parse(f"run:{run.id}@8"))
    extra = saved / "extra.safetensors"
    hostile.rewrite(extra, torch=None)
    forge(saved, extra.name, extra.read_bytes())
    with pytest.raises(LabError, match="something else than a checkpoint of this run"):
        checkpoint.restore_random(checkpoint.verify(saved))


def test_start_from_takes_a_whole_result(
    trained: list[RunDir], make_spec: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    from tests.answers import check

    for run, method in zip(trained, ("full", "lora"), strict=True):
        hostile.plant(run.artifact, tmp_path / "a pickle was read")
        assert check(make_spec(method) | {"init_from_run": f"run:{run.id}"})["problems"] == []
    full = trained[0]
    shutil.move(full.artifact / "model.safetensors", full.artifact / "x.safetensors")
    value = {"metadata": {}, "weight_map": {"a": "x.safetensors", "b": "pytorch_model.bin"}}
    (full.artifact / "model.safetensors.index.json").write_text(json.dumps(value))
    (problem,) = check(make_spec("full") | {"init_from_run": f"run:{full.id}"})["problems"]
    assert "'pytorch_model.bin', which is not the name" in problem["message"]
    with pytest.raises(LabError, match=r"pytorch_model\.bin"):
        chat_models.load(chat_models.parse(f"run:{full.id}"))
    assert not (tmp_path / "a pickle was read").exists(), "a pickle was read"
