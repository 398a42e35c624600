"""The models to choose from: their facts, what is installed, and the hub without a network."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.errors import LabError
from lab.hub import search
from lab.models import model_list, shipped_configs


def test_every_listed_model_has_an_id_that_a_spec_takes() -> None:
    listed = model_list.listed()
    assert listed[0].id == "builtin:smollm2-135m-instruct" and listed[0].context == 8192
    for model in listed:
        assert model.id.startswith("builtin:") or model_list.is_hub_id(model.id), model.id
        assert model.license and model.parameters > 0 and model.context
    ids = [model.id for model in listed]
    assert len(set(ids)) == len(ids)
    assert len(listed) == len(shipped_configs.shipped()), (
        "the built-in one takes its config's place"
    )


def test_what_is_here_comes_first_then_the_smallest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    snapshot = tmp_path / "models--Qwen--Qwen3-8B" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (snapshot / "model.safetensors").write_bytes(b"")
    listed = model_list.listed()
    here = [model.title for model in listed if model.is_installed]
    assert here == [model.title for model in listed][: len(here)] and "Qwen3-8B" in here
    sizes = [model.parameters for model in listed if not model.is_installed]
    assert sizes == sorted(sizes)


@pytest.mark.parametrize(
    ("text", "is_id"),
    [("org/name", True), ("name", False), ("a/b/c", False), ("org/na me", False), ("/etc", False)],
)
def test_a_hub_id_has_an_organisation(text: str, is_id: bool) -> None:
    assert model_list.is_hub_id(text) is is_id


def test_a_config_alone_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    snapshot = tmp_path / "models--Qwen--Qwen3-8B" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    assert not model_list.is_cached("Qwen/Qwen3-8B"), "an estimate reads the config alone"


def test_without_a_network_the_search_says_so_at_once() -> None:
    with pytest.raises(LabError, match="cannot be reached"):
        search.models("smol")
