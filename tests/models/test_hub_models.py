"""Models of the hub: judged before their weights are downloaded, from a stand-in on loopback."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch

from lab.errors import LabError
from lab.models import catalog, hub, weights
from tests.models import hostile

NAME = "org/name"
BIN, WEIGHTS = "pytorch_model.bin", "model.safetensors"


class Hub(BaseHTTPRequestHandler):
    """One repository: its listing, and its files with ranges; `sent` counts bytes by file."""

    protocol_version = "HTTP/1.1"
    folder: Path
    sent: dict[str, int]

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if path.startswith(f"/api/models/{NAME}/tree/"):
            return self.answer([self.entry(file) for file in self.files()])
        if path.startswith(f"/api/models/{NAME}"):
            siblings = [{"rfilename": file.name} for file in self.files()]
            return self.answer({"id": NAME, "sha": self.commit(), "siblings": siblings})
        match = re.fullmatch(rf"/{NAME}/resolve/[^/]+/(.+)", path)
        file = self.folder / (match[1] if match else "nothing")
        if not file.is_file():
            return self.answer({}, 404, {"X-Error-Code": "EntryNotFound"})
        data, status = file.read_bytes(), 200
        headers = {"X-Repo-Commit": self.commit(), "ETag": hashlib.sha1(data).hexdigest()}
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if match:
            end = int(match[2]) + 1 if match[2] else len(data)
            headers["Content-Range"] = f"bytes {match[1]}-{end - 1}/{len(data)}"
            data, status = data[int(match[1]) : end], 206
        if self.command == "GET":
            self.sent[file.name] = self.sent.get(file.name, 0) + len(data)
        self.answer(data, status, headers)

    do_HEAD = do_GET

    def files(self) -> list[Path]:
        return sorted(self.folder.iterdir())

    def commit(self) -> str:
        """Another one when the files change."""
        contents = [(file.name, file.read_bytes()) for file in self.files()]
        return hashlib.sha1(repr(contents).encode()).hexdigest()

    def entry(self, file: Path) -> dict[str, Any]:
        size = file.stat().st_size
        return {"type": "file", "path": file.name, "size": size, "oid": "0" * 40}

    def answer(self, body: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for key, value in ({"Content-Length": str(len(data))} | (headers or {})).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    """The repository's files, with a pickle under every name."""
    copy = tmp_path / "repository"
    shutil.copytree(tiny_model, copy)
    hostile.plant(copy, tmp_path / "a pickle was read")
    return copy


@pytest.fixture
def sent(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    """Bytes that the stand-in has sent, by file."""
    handler = type("Here", (Hub,), {"folder": model, "sent": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_ENDPOINT", address)
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", address)
    files = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    hub._remote_header.cache_clear()
    yield handler.sent
    server.shutdown()
    server.server_close()


@pytest.fixture
def refusal(
    sent: dict[str, int], tmp_path: Path, make_spec: Callable[..., dict[str, Any]]
) -> Callable[[], str]:
    """Why the planner refuses the model; no weights were downloaded, and loading is refused too."""
    from tests.answers import check

    def why() -> str:
        (problem,) = check(make_spec() | {"model": NAME})["problems"]
        with pytest.raises(LabError):
            weights.load_model(catalog.resolve(NAME), torch.float32)
        assert not set(sent) & set(hostile.PICKLES), "a pickle was downloaded"
        downloaded = [file.name for file in (tmp_path / "cache").rglob("*.safetensors")]
        assert downloaded == [], "weights were downloaded for a model that is refused"
        return str(problem["message"])

    return why


def test_a_model_of_the_hub_is_checked_by_headers_and_then_loaded(
    sent: dict[str, int], make_spec: Callable[..., dict[str, Any]], model: Path, tmp_path: Path
) -> None:
    from tests.answers import check

    assert check(make_spec() | {"model": NAME})["problems"] == []
    size = (model / WEIGHTS).stat().st_size
    assert 0 < sent[WEIGHTS] <= hub.CHUNK < size, "only the header was fetched to check"
    loaded = weights.load_model(catalog.resolve(NAME), torch.float32)
    own = weights.load_model(catalog.resolve(str(model)), torch.float32)
    for weight, other in zip(loaded.parameters(), own.parameters(), strict=True):
        assert torch.equal(weight, other), "the weights are those of the hub"
    assert not set(sent) & set(hostile.PICKLES), "a pickle was downloaded"
    assert not (tmp_path / "a pickle was read").exists()


def test_what_is_in_the_cache_is_used_without_a_hub(
    sent: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    weights.load_model(catalog.resolve(NAME), torch.float32)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    source = catalog.resolve(NAME)
    assert source.local_only
    weights.load_model(source, torch.float32)
    weights.load_tokenizer(source)
    other = catalog.resolve("org/unknown")
    with pytest.raises(LabError, match="The hub cannot be reached and the model is not in the"):
        weights.load_config(other)


def test_only_pickles(refusal: Callable[[], str], model: Path) -> None:
    (model / WEIGHTS).unlink()
    assert "has no *.safetensors weights" in refusal()
    (model / "x.safetensors").write_bytes(b"")
    value = {"metadata": {}, "weight_map": {"a": BIN}}
    for index in ("model.safetensors.index.json", f"{BIN}.index.json"):
        (model / index).write_text(json.dumps(value))
    assert f"names '{BIN}', which is not the name of a .safetensors file" in refusal()


@pytest.mark.parametrize(
    "content", [b"", b"PK" * 99, hostile.raw(b"{}", length=2**60), hostile.raw(b"{]")]
)
def test_damaged_weights(refusal: Callable[[], str], model: Path, content: bytes) -> None:
    (model / WEIGHTS).write_bytes(content)
    with pytest.raises(LabError, match="is not a readable safetensors file"):
        hub.local_folder(catalog.resolve(NAME), with_weights=True)
    assert "is not a readable safetensors file" in refusal()


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


def test_a_header_longer_than_the_first_part(sent: dict[str, int], model: Path) -> None:
    hostile.rewrite(model / WEIGHTS, **{f"{'x' * 90}{n}": torch.zeros(1) for n in range(1000)})
    source = catalog.resolve(NAME)
    assert len(weights.stored_tensors(source)) == 1020
    assert hub.CHUNK < sent[WEIGHTS] < 300_000, "the rest of the header, and no more"
