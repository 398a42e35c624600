"""The models to choose from: their facts, what is installed, and the hub without a network."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.errors import LabError
from lab.hub import search
from lab.models import catalog, model_list, shipped_configs


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
    [
        ("org/name", True),
        ("name", False),
        ("a/b/c", False),
        ("org/na me", False),
        ("/etc", False),
        ("a--b/c", False),
        ("a/b..c", False),
        ("org/name#v1", True),
        ("org/name#refs/pr/1", True),
        ("org/name#", False),
        ("org/name#a..b", False),
    ],
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


def test_an_id_of_the_lab_is_known_in_any_case() -> None:
    source = catalog.resolve("BuiltIn:SmolLM2-135M-Instruct")
    assert source.id == "builtin:smollm2-135m-instruct" and not source.is_on_hub
    shape = catalog.resolve_config("CONFIG:smollm2-135m")
    assert shape.id == "config:SmolLM2-135M" and shape.config
    with pytest.raises(LabError) as refused:
        catalog.resolve_config("config:Llama-3.2-1")
    assert "Did you mean config:Llama-3.2-1B?" in refused.value.hint


def test_a_model_of_nothing_but_a_config_has_no_weights(tmp_path: Path) -> None:
    assert not catalog.has_weights("config:SmolLM2-135M")
    assert not catalog.has_weights(str(tmp_path / "some.json"))
    assert not catalog.has_weights(str(tmp_path))
    (tmp_path / "model.safetensors").touch()
    assert catalog.has_weights(str(tmp_path)) and catalog.has_weights("org/name")


def test_a_config_is_judged_by_the_file_that_a_link_leads_to(tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text('{"model_type": "llama"}')
    (tmp_path / "some.json").symlink_to(secret)
    with pytest.raises(LabError, match="is not a readable model config"):
        catalog.resolve_config(str(tmp_path / "some.json"))
    secret.rename(tmp_path / "real.json")
    assert catalog.resolve_config(str(tmp_path / "real.json")).config == {"model_type": "llama"}


def test_two_bytes_of_each_parameter_are_downloaded() -> None:
    model = next(model for model in model_list.listed() if model.title == "Qwen3-8B")
    assert model.download_bytes == pytest.approx(16.4e9, rel=0.01)


def test_the_home_of_a_person_is_where_a_tilde_leads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine").mkdir()
    assert catalog.local_folder("~/mine") == tmp_path / "mine"
    assert not catalog.has_weights("~/mine")
    (tmp_path / "mine" / "x.safetensors").touch()
    assert catalog.has_weights("~/mine")
    built_in = catalog.local_folder("builtin:SmolLM2-135M-Instruct")
    assert built_in == catalog.BUILT_IN[0].folder and catalog.local_folder("org/name") is None


def test_what_a_search_does_not_say_is_not_made_up() -> None:
    bare = search._model({"id": "org/name"})
    assert (bare.license, bare.downloads, bare.parameters) == ("not stated", 0, None)
    assert not bare.is_gated and not bare.has_safetensors
    for gated, is_gated in (("auto", True), ("manual", True), (True, True), ("false", False)):
        assert search._model({"id": "org/name", "gated": gated}).is_gated is is_gated
    files = [{"rfilename": "model.safetensors"}]
    assert search._model({"id": "org/name", "siblings": files}).has_safetensors
    tags = ["license:mit"]
    card = {"id": "org/name", "tags": tags, "cardData": {"license": "other"}}
    assert search._model(card).license == "mit", "The Hub's own tag comes first."
