"""A merged model is kept only if it answers as the result does, read back from the disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from lab.errors import LabError
from lab.export import merge as merging
from lab.paths import RunDir


@pytest.mark.parametrize("apart", [0.5, -0.5])
def test_one_logit_that_rises_or_falls_is_seen(apart: float) -> None:
    before = torch.tensor([[[0.0, 1.0, -1.0, 0.0]]])
    after = before.clone()
    after[0, 0, 2] += apart
    spread = float(torch.tensor([0.0, 1.0, -1.0, 0.0]).std())
    assert merging._difference(before, after) == pytest.approx(0.5 / spread)
    assert merging._difference(before, before) == 0.0
    assert merging._difference(before, after[..., :3]) == float("inf"), "Another vocabulary."


@pytest.mark.parametrize("damage", ["up", "down", "nan"])
def test_what_the_disk_holds_is_compared_and_nothing_else_is_kept(
    trained: list[RunDir], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    """The write itself goes wrong: what lies in memory is sound, what lies on the disk is not."""
    real = LlamaForCausalLM.save_pretrained

    def broken(self: Any, folder: Path, **more: Any) -> None:
        norm = self.model.norm.weight
        saved = norm.detach().clone()
        with torch.no_grad():
            norm.fill_(float("nan")) if damage == "nan" else norm.mul_(
                1.1 if damage == "up" else 0.9
            )
        real(self, folder, **more)
        with torch.no_grad():
            norm.copy_(saved)

    monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", broken)
    with pytest.raises(LabError, match="answers differently"):
        merging.merge(trained[1], tmp_path / "out" / "merged")
    assert list((tmp_path / "out").iterdir()) == [], "Not even a part is left."
    monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", real)
    merged = merging.merge(trained[1], tmp_path / "out" / "merged")
    files = list((tmp_path / "out" / "merged").iterdir())
    assert merged["bytes"] == sum(file.stat().st_size for file in files)
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["merged"]
    card = (tmp_path / "out" / "merged" / "README.md").read_text()
    assert "Tried with transformers" in card and 'library_name: "transformers"' in card


def test_a_folder_under_the_old_temporary_name_is_left_alone(
    trained: list[RunDir], tmp_path: Path
) -> None:
    other = tmp_path / ".merged.tmp"
    other.mkdir()
    (other / "mine").write_text("kept")
    merging.merge(trained[1], tmp_path / "merged")
    assert (other / "mine").read_text() == "kept" and (tmp_path / "merged").is_dir()


def test_a_changed_tokenizer_file_is_refused_before_the_merge(
    trained: list[RunDir], tmp_path: Path
) -> None:
    file = trained[1].artifact / "tokenizer_config.json"
    file.write_text(file.read_text() + " ")
    with pytest.raises(LabError, match="tokenizer_config"):
        merging.merge(trained[1], tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
