"""The built-in model is made once, whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lab.atomic_files import read_object
from lab.errors import LabError
from lab.models import built_in
from lab.models.catalog import BuiltIn

MODEL = BuiltIn("tiny", "Tiny", package="no_such_package", license="MIT", parameters=1)


@pytest.fixture
def converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were converted so far, without a package or a library."""
    files: list[Path] = []

    def convert(gguf: Path, folder: Path, tell: Any) -> None:
        files.append(gguf)
        (folder / "config.json").write_text("{}")

    monkeypatch.setenv("LAB_MODELS", str(tmp_path / "models"))
    monkeypatch.setattr(built_in, "_package_file", lambda model: tmp_path / "tiny.gguf")
    monkeypatch.setattr(built_in, "_convert", convert)
    return files


def test_a_model_is_converted_once(
    converted: list[Path], tmp_path: Path, unsynced: dict[Path, list[str]]
) -> None:
    lines: list[str] = []
    for _ in range(2):
        assert built_in.prepare(MODEL, lines.append) == MODEL.folder
    assert converted == [tmp_path / "tiny.gguf"] and len(lines) == 2
    assert unsynced[MODEL.folder] == [], "It is on the disk before it has its name."
    origin = read_object(MODEL.folder / "origin.json")
    assert origin == {"package": "no_such_package", "file": "tiny.gguf", "license": "MIT"}
    assert [file.name for file in MODEL.folder.parent.iterdir()] == ["tiny"]


def test_a_conversion_that_fails_leaves_nothing(
    converted: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(gguf: Path, folder: Path, tell: Any) -> None:
        (folder / "config.json").write_text("{")
        raise LabError("The memory is full.")

    monkeypatch.setattr(built_in, "_convert", fail)
    with pytest.raises(LabError, match="The memory is full"):
        built_in.prepare(MODEL, lambda text: None)
    assert not MODEL.is_ready
    assert list(MODEL.folder.parent.iterdir()) == [], "Half a model is no model."


def test_another_process_may_be_faster(
    converted: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def convert(gguf: Path, folder: Path, tell: Any) -> None:
        MODEL.folder.mkdir()
        (MODEL.folder / "config.json").write_text('{"from": "the other"}')

    monkeypatch.setattr(built_in, "_convert", convert)
    assert built_in.prepare(MODEL, lambda text: None) == MODEL.folder
    assert read_object(MODEL.folder / "config.json") == {"from": "the other"}


def test_a_package_that_is_not_there_is_named() -> None:
    with pytest.raises(LabError, match="The package no_such_package, which carries Tiny, is not"):
        built_in._package_file(MODEL)
