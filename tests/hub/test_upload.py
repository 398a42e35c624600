"""A result goes to the Hub as it is, with its card, and is compared with what lies there."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from lab import cli
from lab.atomic_files import read_object, write_json
from lab.errors import LabError
from lab.export import push
from lab.hub import credentials, upload
from lab.paths import RunDir
from tests.hub.stand_in import StandIn

NAME = "me/wren-lora"


@pytest.fixture
def hub(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """A Hub that takes uploads of one token."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    stand_in.writers = {"hf_writer"}
    credentials.give("hf_writer", "a token of a test")
    yield stand_in


def test_a_result_lies_there_as_it_lies_here(hub: StandIn, trained: list[RunDir]) -> None:
    lora, phases = trained[1], []
    request = {"name": NAME, "what": "result", "private": True, "update": False}
    commit = push.push(lora, request, phases.append)
    files = hub.files(NAME)
    weights = (lora.artifact / "adapter_model.safetensors").read_bytes()
    assert files["adapter_model.safetensors"] == weights
    assert commit.verified == commit.files == len(files) - 1 and commit.is_private
    assert commit.bytes == sum(map(len, files.values())) - len(files[".gitattributes"])
    assert hub.visibility[NAME] == "private" and commit.url == f"{hub.address}/{NAME}"
    assert "uploading" in phases and phases[-1] == "comparing the files on the Hub"
    card = files["README.md"].decode()
    assert "base_model" not in card.split("---")[1], "A folder is no repository of the Hub."
    assert "tiny-llama" in card and "LoRA" in card
    for name in ("README.md", "receipt.json", "adapter_config.json"):
        text = files[name].decode()
        assert str(lora.artifact) not in text and "/tiny-llama" not in text, name
    assert json.loads(files["adapter_config.json"])["peft_type"] == "LORA"


def test_one_that_exists_is_left_alone_unless_asked(hub: StandIn, trained: list[RunDir]) -> None:
    lora = trained[1]
    hub.commit(NAME, {"README.md": b"mine"})
    with pytest.raises(LabError, match="exists on the Hub already"):
        push.push(lora, {"name": NAME, "what": "result", "private": False, "update": False})
    with pytest.raises(LabError, match="public on the Hub, not private"):
        push.push(lora, {"name": NAME, "what": "result", "private": True, "update": True})
    assert hub.files(NAME) == {"README.md": b"mine"}
    push.push(lora, {"name": NAME, "what": "result", "private": False, "update": True})
    assert b"LoRA" in hub.files(NAME)["README.md"]


@pytest.mark.parametrize("private", [True, False])
def test_a_visibility_that_was_not_asked_for_is_told_before_a_byte_is_sent(
    hub: StandIn, trained: list[RunDir], private: bool
) -> None:
    hub.policy = "public" if private else "private"
    request = {"name": NAME, "what": "result", "private": private, "update": False}
    with pytest.raises(LabError, match=f"was made {hub.policy} by the Hub.*Nothing was uploaded"):
        push.push(trained[1], request)
    assert list(hub.files(NAME)) == [".gitattributes"]
    assert hub.requests("PUT", "lfs") == [] == hub.requests("POST", "preupload")


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "README.md"])
def test_what_does_not_lie_there_as_here_is_told(
    hub: StandIn, trained: list[RunDir], file: str
) -> None:
    """A large file by its sha256, a small one by Git's own hash."""
    hub.lost = file
    with pytest.raises(LabError, match=rf"{file} does not lie on the Hub"):
        push.push(trained[1], {"name": NAME, "what": "result", "private": True, "update": False})


def test_refusals_are_told_in_words(
    hub: StandIn, trained: list[RunDir], monkeypatch: pytest.MonkeyPatch
) -> None:
    lora = trained[1]
    request = {"name": NAME, "what": "result", "private": True, "update": False}
    hub.faults["*"] = {"tokens": ["hf_reader"]}
    credentials.give("hf_reader", "the token of a reader")
    with pytest.raises(LabError, match="the token of a reader may not write there"):
        push.push(lora, request)
    credentials.adopt(None)
    with pytest.raises(LabError, match="needs a token with the right to write"):
        push.start(lora, NAME, "result", private=True, update=False)
    credentials.give("hf_writer")
    for name in ("wren", "a/b/c", "a/../b", "a b/c", "a/<script>", "", "a/b.git", "a/b.ipynb"):
        with pytest.raises(LabError, match="not the name of a repository"):
            push.start(lora, name, "result", private=True, update=False)
    with pytest.raises(LabError, match="not made yet"):
        push.start(lora, NAME, "merged-bfloat16", private=True, update=False)
    (lora.exports / "merged-bfloat16").mkdir(parents=True)
    job = {"finish": "done", "result": {"bytes": 1, "weights": {"adapter_model.safetensors": "x"}}}
    write_json(lora.exports / "merged-bfloat16.json", job)
    with pytest.raises(LabError, match="made from an earlier result"):
        push.start(lora, NAME, "merged-bfloat16", private=True, update=False)
    with pytest.raises(LabError, match="no export"):
        push.start(lora, NAME, "../../x", private=True, update=False)
    (lora.artifact / "tokenizer_config.json").write_text("{}")
    with pytest.raises(LabError, match="not the file that it was trained with"):
        push.start(lora, NAME, "result", private=True, update=False)
    monkeypatch.setenv("LAB_HUB_OFFLINE", "1")
    with pytest.raises(LabError, match="HF_HUB_OFFLINE is set"):
        upload.check_access()
    assert hub.requests("POST", "commit") == []


def test_only_files_of_a_result_go_out(hub: StandIn, trained: list[RunDir]) -> None:
    lora = trained[1]
    (lora.artifact / "secret.pem").write_text("x")
    (lora.artifact / "link.json").symlink_to("/etc/passwd")
    files = push.contents(lora, "result")
    assert "secret.pem" not in files and "link.json" not in files
    assert isinstance(files["adapter_model.safetensors"], Path), "Read in pieces, not held."


def test_no_file_of_this_machine_is_named(trained: list[RunDir]) -> None:
    lora = trained[1]
    spec = read_object(lora.spec) or {}
    files = {"dataset": "/home/me/rows.jsonl", "eval_dataset": "/home/me/held_out.jsonl"}
    write_json(lora.spec, spec | {"data": spec["data"] | files})
    names = push.private_names(lora)
    text = push.public_text(" and ".join(files.values()), names)
    assert text == "rows.jsonl and held_out.jsonl"


def test_a_card_of_a_hub_model_names_it() -> None:
    card = '---\nbase_model: "org/name#0123"\ntags: []\n---\n/data/x/rows.jsonl'
    text = push.public_text(card, {"/data/x/rows.jsonl": "rows.jsonl", "/data": "D"})
    assert text == '---\nbase_model: "org/name"\ntags: []\n---\nrows.jsonl'


def test_the_command_uploads_in_a_process_of_its_own(
    hub: StandIn,
    trained: list[RunDir],
    lab_json: Callable[..., Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    lora = trained[1]
    command = ["push", lora.id, NAME, "--private", "--yes"]
    commit = lab_json(*command)
    files = hub.files(NAME)
    weights = (lora.artifact / "adapter_model.safetensors").read_bytes()
    assert files["adapter_model.safetensors"] == weights
    assert commit["verified"] == commit["files"] == len(files) - 1 and commit["is_private"]
    record = "".join(file.read_text() for file in lora.exports.iterdir())
    assert commit["commit"] in record and "hf_writer" not in record, (
        "The token went through a pipe."
    )
    assert cli.main(command) == 2
    assert "exists on the Hub already" in capsys.readouterr().err
