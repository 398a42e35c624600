"""Exports in the background, and how they are downloaded."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from lab import background_job, paths, process
from lab.atomic_files import read_object, write_json
from lab.errors import LabError
from lab.export import exports, merge
from lab.paths import RunDir
from lab.ui import downloads


def test_an_export_is_made_with_its_proof_and_known_to_be_of_this_result(
    trained: list[RunDir], capsys: pytest.CaptureFixture[str]
) -> None:
    lora = trained[1]
    lora.exports.mkdir()
    (lora.exports / ".merged-float32.left").mkdir()
    (lora.exports / ".left.gguf").write_text("x")
    assert exports.record(lora, "merged", "float32") is None
    assert exports.make(lora, "merged", "float32") == 0
    job = exports.record(lora, "merged", "float32")
    assert job is not None and job.finish == "done" and exports.active(lora) is None
    folder = lora.exports / "merged-float32"
    assert job.result["proof"]["verdict"] == "equal"
    assert job.result["bytes"] == sum(file.stat().st_size for file in folder.iterdir())
    about = exports.predicted_bytes(lora, "merged", "float32")
    assert job.result["bytes"] == pytest.approx(about, rel=0.02)
    assert {path.name for path in lora.exports.iterdir()} == {
        "merged-float32", "merged-float32.json", "merged-float32.lock",
    }, "What killed processes left is gone."  # fmt: skip
    assert exports.is_current(lora, job)
    receipt = read_object(lora.artifact / "receipt.json") or {}
    write_json(lora.artifact / "receipt.json", receipt | {"weights": {"adapter": "other"}})
    assert not exports.is_current(lora, job), "The run was resumed."
    assert exports.make(lora, "merged", "float32") == 0, "It takes the place of the old one."
    (folder / "model.safetensors").unlink()
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    assert exports.record(lora, "merged", "float32") is None, "Somebody has removed it."


def test_what_cannot_be_exported_is_said_with_what_works(trained: list[RunDir]) -> None:
    full, lora = trained
    assert "whole model" in exports.why_not(full, "merged")[0]
    assert exports.why_not(full, "gguf") == exports.why_not(lora, "gguf") == ("", "")
    with pytest.raises(LabError, match="whole model"):
        exports.start(full, "merged", "float32")
    for kind, weight_type in (("merged", "../x"), ("x", "float32"), ("gguf", "float32")):
        with pytest.raises(LabError, match="no export"):
            exports.start(lora, kind, weight_type)


@pytest.mark.parametrize(
    ("kind", "phase", "share"),
    [
        ("merged", "starting", 0.0), ("merged", "merging", 3 / 5), ("gguf", "merging", 3 / 7),
        ("gguf", "proving the GGUF file", 6 / 7), ("merged", "a word of a later lab", 0.0),
    ],
)  # fmt: skip
def test_how_far_an_export_is_follows_its_phases(kind: str, phase: str, share: float) -> None:
    assert exports.fraction(kind, background_job.JobRecord(phase=phase)) == pytest.approx(share)


def test_the_disk_that_is_asked_for_follows_the_type(trained: list[RunDir]) -> None:
    """Beside the tokenizer's files; a GGUF has no tokenizer.json, which is half of them."""
    lora = trained[1]
    weights = merge.bytes_needed(lora) / 4
    names = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
    tokenizer = sum((lora.artifact / name).stat().st_size for name in names)
    for kind, sizes in (
        ("merged", {"float32": 4, "bfloat16": 2}), ("gguf", {"F32": 4, "F16": 2, "Q8_0": 1.0625}),
    ):  # fmt: skip
        beside = tokenizer if kind == "merged" else tokenizer // 2
        for weight_type, size in sizes.items():
            predicted = exports.predicted_bytes(lora, kind, weight_type)
            assert predicted == pytest.approx(size * weights + beside, abs=1), weight_type


def test_an_export_that_is_being_made_is_found_and_ends_with_its_process(
    trained: list[RunDir],
) -> None:
    lora, here = trained[1], process.identity(os.getpid())
    lora.exports.mkdir()
    assert exports.active(lora) is None
    write_json(lora.exports / "gguf-F16.json", {"process": here, "phase": "merging"})
    assert exports.active(lora) == ("gguf", "F16")
    write_json(lora.exports / "gguf-F16.json", {"process": here | {"start": 1}})
    assert exports.active(lora) is None, "It was interrupted."


def test_a_start_is_refused_before_anything_is_written(
    trained: list[RunDir], monkeypatch: pytest.MonkeyPatch
) -> None:
    lora, started = trained[1], []

    def start(file: Path, arguments: list[str]) -> None:
        started.append(arguments)

    monkeypatch.setattr(background_job, "start", start)
    exports.start(lora, "gguf", "Q8_0")
    assert started == [["lab.export", "gguf", lora.id, "Q8_0"]]
    monkeypatch.setattr(exports, "active", lambda run: ("merged", "float32"))
    with pytest.raises(LabError, match="Another export"):
        exports.start(lora, "gguf", "F16")
    monkeypatch.setattr(exports, "active", lambda run: None)

    def full_disk(target: Path, needed: int) -> None:
        raise LabError(f"It needs {needed} of disk.")

    monkeypatch.setattr(merge, "check_disk", full_disk)
    with pytest.raises(LabError) as refusal:
        exports.start(lora, "gguf", "F32")
    both = exports.predicted_bytes(lora, "gguf", "F32") + merge.bytes_needed(lora)
    assert str(both) in str(refusal.value), "The merged model stands beside the file."
    assert len(started) == 1 and not lora.exports.exists()


def test_a_folder_goes_out_in_pieces_as_a_zip_that_holds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    (folder / "more").mkdir(parents=True)
    (folder / "a.safetensors").write_bytes(bytes(range(256)) * 40)
    (folder / "more" / "b.json").write_text("{}")
    (folder / "link").symlink_to("/etc/passwd")
    monkeypatch.setattr(downloads, "CHUNK", 1000)
    pieces = list(downloads.zip_stream(folder, "top"))
    assert max(map(len, pieces)) < 1500, "It is never in memory as a whole."
    archive = zipfile.ZipFile(io.BytesIO(b"".join(pieces)))
    assert archive.testzip() is None
    assert archive.namelist() == ["top/a.safetensors", "top/more/b.json"]
    assert archive.read("top/a.safetensors") == bytes(range(256)) * 40


def test_downloads_give_what_is_there_and_nothing_else(trained: list[RunDir]) -> None:
    lora = trained[1]
    client = TestClient(Starlette(routes=downloads.ROUTES))
    reply = client.get(f"/download/{lora.id}/result")
    archive = zipfile.ZipFile(io.BytesIO(reply.content))
    name = f"{lora.id}-model/adapter_model.safetensors"
    assert archive.read(name) == (lora.artifact / "adapter_model.safetensors").read_bytes()
    assert reply.headers["content-disposition"] == f'attachment; filename="{lora.id}-model.zip"'
    whole = zipfile.ZipFile(io.BytesIO(client.get(f"/download/{lora.id}/run").content))
    assert {"spec.json", "result.json", "metrics.jsonl"} <= set(whole.namelist())
    assert not list(paths.home().glob(".export-*")), "It is removed once it is sent."
    lora.exports.mkdir()
    (lora.exports / "Q8_0.gguf").write_bytes(b"GGUF" * 1000)
    gguf = f"/download/{lora.id}/gguf-Q8_0"
    assert client.get(gguf).status_code == 404, "It is not proven yet."
    write_json(lora.exports / "gguf-Q8_0.json", {"finish": "done"})
    reply = client.get(gguf)
    assert reply.content == b"GGUF" * 1000 and reply.headers["content-length"] == "4000"
    assert f"{lora.id}-Q8_0.gguf" in reply.headers["content-disposition"]
    bad: list[Any] = [
        "merged-float32",
        "gguf-x",
        "..",
        "%2e%2e%2fspec.json",
        "spec.json",
        "exports",
    ]
    for what in bad:
        assert client.get(f"/download/{lora.id}/{what}").status_code == 404, what
    assert client.get("/download/..%2f..%2fetc/result").status_code == 404
    assert client.get("/download/20260101-000000-lora-zzzz/result").status_code == 404
