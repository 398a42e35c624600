"""Presets: ours are valid, pairs differ in the method alone, those of a person are kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab import paths, presets
from lab.errors import LabError
from lab.spec import RunSpec


def test_every_preset_of_ours_is_a_valid_spec() -> None:
    for preset in (*presets.PRESETS, *presets.PAIRS):
        RunSpec.from_json(preset.changes)
    for pair in presets.PAIRS:
        assert pair.methods[0] != pair.methods[1] and "method" not in pair.changes
        assert "learning_rate" not in pair.changes["train"], "each at its method's own rate"


def test_a_saved_preset_comes_back_as_it_was(lab_home: Path) -> None:
    assert presets.saved() == {}
    spec = RunSpec.from_json({"name": "mine", "train": {"max_steps": 7}}).to_json()
    name = presets.save("  My tickets! ", spec)
    assert presets.saved() == {name: "My tickets!"}
    assert RunSpec.from_json(presets.load_saved(name)).train.max_steps == 7
    presets.save("my tickets", spec | {"name": "newer"})
    assert list(presets.saved().values()) == ["my tickets"], "the same title replaces it"
    assert presets.load_saved(name)["name"] == "newer"


@pytest.mark.parametrize("title", ["", "   ", "!!!", "../.."])
def test_a_title_that_names_nothing_is_refused(lab_home: Path, title: str) -> None:
    with pytest.raises(LabError, match="cannot be the title"):
        presets.save(title, {})
    assert not (paths.home() / "presets").exists()


@pytest.mark.parametrize("name", ["gone", "../../etc/passwd", "damaged"])
def test_a_preset_that_is_not_there_is_said(lab_home: Path, name: str) -> None:
    paths.make_folder(paths.home() / "presets")
    (paths.home() / "presets" / "damaged.json").write_text('{"title": 3')
    with pytest.raises(LabError, match="There is no preset"):
        presets.load_saved(name)
