"""Models of the hub: judged before their weights are downloaded, from a stand-in on loopback."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lab.errors import LabError
from lab.hub import client, repository
from lab.models import catalog, hub, weights
from tests.answers import check
from tests.hub.conftest import NAME
from tests.hub.stand_in import StandIn
from tests.models import hostile

BIN, WEIGHTS = "pytorch_model.bin", "model.safetensors"


@pytest.fixture
def model(micro_model: Path, tmp_path: Path) -> Path:
    """The repository's files, with a pickle under every name."""
    copy = tmp_path / "repository"
    shutil.copytree(micro_model, copy)
    hostile.plant(copy, tmp_path / "a pickle was read")
    return copy


@pytest.fixture
def refusal(
    stand_in: StandIn, model: Path, tmp_path: Path, hub_spec: Callable[..., dict[str, Any]]
) -> Callable[[], str]:
    """Why the planner refuses the model; no weights were downloaded, and loading is refused too."""

    def why() -> str:
        stand_in.commit(NAME, model)
        (problem,) = check(hub_spec())["problems"]
        with pytest.raises(LabError):
            weights.load_model(catalog.resolve(NAME), torch.float32)
        for name in hostile.PICKLES:
            assert not stand_in.requests("GET", name), "a pickle was downloaded"
        downloaded = [file.name for file in (tmp_path / "hf").rglob("*.safetensors")]
        assert downloaded == [], "weights were downloaded for a model that is refused"
        return str(problem["message"])

    return why


def test_a_model_of_the_hub_is_checked_by_headers_and_then_loaded(
    stand_in: StandIn, hub_spec: Callable[..., dict[str, Any]], model: Path, tmp_path: Path
) -> None:
    stand_in.commit(NAME, model)
    assert check(hub_spec())["problems"] == []
    assert {line.range for line in stand_in.requests("GET", WEIGHTS)} == {
        f"bytes=0-{min(hub.CHUNK, (model / WEIGHTS).stat().st_size) - 1}"
    }, "only the header was fetched to check"
    assert not list((tmp_path / "hf").rglob("*.safetensors"))
    loaded = weights.load_model(catalog.resolve(NAME), torch.float32)
    own = weights.load_model(catalog.resolve(str(model)), torch.float32)
    for one, other in zip(loaded.parameters(), own.parameters(), strict=True):
        assert torch.equal(one, other), "the weights are those of the hub"
    for name in hostile.PICKLES:
        assert not stand_in.requests("GET", name), "a pickle was downloaded"
    assert not (tmp_path / "a pickle was read").exists()


def test_what_is_in_the_cache_is_used_without_a_hub(
    stand_in: StandIn, micro_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in.commit(NAME, micro_model)
    weights.load_model(catalog.resolve(NAME), torch.float32)
    stand_in.clear()
    for spelling in ("1", "on", "Yes", "TRUE", "true"):
        monkeypatch.setenv("LAB_HUB_OFFLINE", "")
        monkeypatch.setenv("HF_HUB_OFFLINE", spelling)
        source = catalog.resolve(NAME)
        assert source.local_only, f"HF_HUB_OFFLINE={spelling} means offline, as for the library"
    weights.load_model(source, torch.float32)
    weights.load_tokenizer(source)
    with pytest.raises(LabError, match=r"HF_HUB_OFFLINE is set.*not in the local cache"):
        weights.load_config(catalog.resolve("org/unknown"))
    assert stand_in.log == []


def test_a_hub_that_is_gone_leaves_the_cache(stand_in: StandIn, micro_model: Path) -> None:
    stand_in.commit(NAME, micro_model)
    weights.load_model(catalog.resolve(NAME), torch.float32)
    stand_in.close()
    weights.load_model(catalog.resolve(NAME), torch.float32)
    with pytest.raises(LabError, match="the Hub cannot be reached") as raised:
        weights.load_config(catalog.resolve("org/unknown"))
    assert "HTTPS_PROXY" in raised.value.hint, "the way out is the network's"


@pytest.mark.parametrize(
    "content", [b"", b"PK" * 99, hostile.raw(b"{}", length=2**60), hostile.raw(b"{]")]
)
def test_damaged_weights(
    refusal: Callable[[], str], model: Path, tmp_path: Path, content: bytes
) -> None:
    (model / WEIGHTS).write_bytes(content)
    assert "is not a readable safetensors file" in refusal()
    with pytest.raises(LabError, match="is not a readable safetensors file"):
        hub.local_folder(catalog.resolve(NAME), with_weights=True)
    assert not list((tmp_path / "hf").rglob("*.safetensors")), "Headers are judged first."


@pytest.mark.parametrize(
    ("file", "fields"),
    [
        ("config.json", {"auto_map": {"AutoModelForCausalLM": "evil.M"}}),
        ("config.json", {"attn_implementation": "kernels-community/x"}),
        ("config.json", {"transformers_weights": "adapter_model.bin"}),
        ("config.json", {"num_hidden_layers": 4}),
        ("tokenizer_config.json", {"tokenizer_class": "AutoModelForCausalLM"}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.T", None]}}),
    ],
)
def test_configs(
    refusal: Callable[[], str], model: Path, file: str, fields: dict[str, Any]
) -> None:
    hostile.change(model / file, **fields)
    refusal()


def test_an_adapter_of_the_hub_does_not_lead_to_its_base(
    refusal: Callable[[], str], model: Path
) -> None:
    (model / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "a/b"}))
    assert "holds an adapter" in refusal()


def test_a_header_longer_than_the_first_part(stand_in: StandIn, model: Path) -> None:
    hostile.rewrite(model / WEIGHTS, **{f"{'x' * 90}{n}": torch.zeros(1) for n in range(1000)})
    stand_in.commit(NAME, model)
    assert len(hub.stored_tensors(catalog.resolve(NAME))) == 1021
    assert hub.CHUNK < stand_in.sent(WEIGHTS) < 300_000, "the rest of the header, and no more"


def test_a_listing_of_several_pages_is_read_whole(stand_in: StandIn, model: Path) -> None:
    for number in range(120):
        (model / f"note-{number:03}.md").write_text("")
    stand_in.commit(NAME, model)
    hub.config_folder(catalog.resolve(NAME))
    assert len(stand_in.requests("GET", "/tree/")) == 3


def test_an_address_that_is_no_hub_is_told(stand_in: StandIn, monkeypatch: Any) -> None:
    monkeypatch.setattr("lab.hub.client._get_once", lambda *_: (b"<html>login</html>", {}))
    with pytest.raises(LabError, match="does not answer as a Hub does") as raised:
        client.get_json("/api/models/a/b", "The model 'a/b'")
    assert "HF_ENDPOINT" in raised.value.hint


def test_a_text_file_of_gigabytes_is_not_fetched_beside_the_tokenizer(
    stand_in: StandIn, micro_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {file.name: file.read_bytes() for file in micro_model.iterdir()}
    largest = max(len(content) for name, content in files.items() if name != WEIGHTS)
    monkeypatch.setattr(hub, "MAX_SMALL_BYTES", largest)
    stand_in.commit(NAME, files | {"corpus.txt": b"x" * (largest + 1), "notes.txt": b"x"})
    folder = hub.local_folder(hub.pin(catalog.resolve(NAME)), with_weights=False)
    names = {file.name for file in folder.iterdir()}
    assert "notes.txt" in names and names.isdisjoint({"corpus.txt", WEIGHTS})


def test_a_hub_that_sends_no_parts_of_files_is_told(
    stand_in: StandIn, micro_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "CHUNK", 64)
    stand_in.commit(NAME, micro_model)
    stand_in.faults[NAME] = {"whole": True, "file": WEIGHTS}
    with pytest.raises(LabError, match=f"does not send parts of '{WEIGHTS}'"):
        hub.stored_tensors(hub.pin(catalog.resolve(NAME)))


def test_a_cache_without_the_config_is_no_model(
    stand_in: StandIn, micro_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = stand_in.commit(NAME, micro_model)
    source = catalog.resolve(f"{NAME}#{commit}")
    folder = repository.snapshot(repository.Repository("models", NAME, commit))
    folder.mkdir(parents=True)
    monkeypatch.setenv("LAB_HUB_OFFLINE", "1")
    with pytest.raises(LabError, match="It is not in the local cache either"):
        hub.config_folder(source)
    shutil.copytree(micro_model, folder, dirs_exist_ok=True)
    assert hub.config_folder(source) == folder, "Another program has brought it."


def test_a_branch_that_is_back_at_what_is_here_is_noted(
    stand_in: StandIn, micro_model: Path
) -> None:
    commit = stand_in.commit(NAME, micro_model)
    source = catalog.resolve(f"{NAME}#{commit}")
    hub.config_folder(source)
    assert repository.cached_commit("models", NAME, "main") is None
    assert hub.moved_on(source, NAME) == ""
    assert repository.cached_commit("models", NAME, "main") == commit
    stand_in.refs["models", NAME]["main"] = "b" * 40
    shutil.copytree(
        stand_in.folder("models", NAME, commit), stand_in.folder("models", NAME, "b" * 40)
    )
    assert "has moved on to bbbbbbbbbbbb" in hub.moved_on(source, NAME)
    assert hub.moved_on(source, "org/other") == "" == hub.moved_on(source, source.id)


def test_what_another_program_brought_is_verified_before_it_is_loaded(
    stand_in: StandIn, micro_model: Path, lab_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in.commit(NAME, micro_model)
    source = hub.pin(catalog.resolve(NAME))
    folder = hub.local_folder(source, with_weights=True)
    blob = (folder / WEIGHTS).resolve()
    content = blob.read_bytes()
    blob.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    shutil.rmtree(lab_home / "cache" / "hub")  # as if the lab had never seen it
    monkeypatch.setenv("LAB_HUB_OFFLINE", "1")
    with pytest.raises(LabError, match=f"{WEIGHTS} in the cache is damaged"):
        hub.local_folder(source, with_weights=True)
    assert not blob.exists()


def test_a_download_is_announced_with_what_is_here_and_what_is_to_come(
    stand_in: StandIn, micro_model: Path
) -> None:
    stand_in.commit(NAME, micro_model)
    sizes = {file.name: file.stat().st_size for file in micro_model.iterdir()}
    source = hub.pin(catalog.resolve(NAME))
    before = hub.download_size(source)
    assert before is not None
    assert (before.bytes, before.total_bytes, before.files) == (
        sum(sizes.values()), sum(sizes.values()), len(sizes)
    )  # fmt: skip
    assert not hub.has_tokenizer_here(source)
    hub.local_folder(source, with_weights=False)
    after = hub.download_size(source)
    assert after is not None
    assert (after.bytes, after.total_bytes, after.files) == (
        sizes[WEIGHTS], sum(sizes.values()), 1
    )  # fmt: skip
    assert hub.has_tokenizer_here(source) and hub.tokenizer_download(source) is None
    assert hub.download_size(catalog.resolve(str(micro_model))) is None
